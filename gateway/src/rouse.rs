//! Connections that wake themselves.
//!
//! hyper wakes a connection's task whenever the service that it is just running takes a piece of the request's body. The
//! runtime takes that for a task that yields: it goes to the end of the queue, and another thread is woken to see whether
//! there is work for it. For the one short body of a call that costs more than reading it, so such a task is polled again
//! at once instead.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// Polls in a row; a task that goes on waking itself lets others have their turn.
const IN_A_ROW: usize = 4;

const IDLE: u8 = 0;
const POLLED: u8 = 1;
/// Woken while it was polled.
const ROUSED: u8 = 2;

/// A future that is polled again at once when it wakes itself.
pub(crate) struct Rousing<F> {
    inner: Pin<Box<F>>,
    state: Arc<State>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    phase: AtomicU8,
    task: AtomicWaker,
}

impl<F: Future> Rousing<F> {
    pub(crate) fn new(inner: F) -> Self {
        let state = Arc::new(State::default());
        Self { inner: Box::pin(inner), waker: state.clone().into(), state }
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let roused =
            self.phase.fetch_update(Ordering::AcqRel, Ordering::Acquire, |phase| (phase != IDLE).then_some(ROUSED));
        if roused.is_err() {
            self.task.wake();
        }
    }
}

impl<F: Future> Future for Rousing<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.state.task.register(cx.waker());
        for _ in 0..IN_A_ROW {
            this.state.phase.store(POLLED, Ordering::Release);
            let polled = this.inner.as_mut().poll(&mut Context::from_waker(&this.waker));
            let quiet = this.state.phase.compare_exchange(POLLED, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if polled.is_ready() || quiet.is_ok() {
                return polled;
            }
        }
        this.state.phase.store(IDLE, Ordering::Release);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A future that wakes itself so many times, and its task's waker.
    fn restless(times: usize) -> (impl Future<Output = ()>, Arc<Count>, Arc<AtomicUsize>) {
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        let inner = std::future::poll_fn(move |cx| {
            if counted.fetch_add(1, Ordering::Relaxed) < times {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        (Rousing::new(inner), Arc::default(), polls)
    }

    #[test]
    fn a_task_that_wakes_itself_is_polled_again_without_the_runtime() {
        let (future, count, polls) = restless(2);
        let waker = Waker::from(count.clone());
        assert!(std::pin::pin!(future).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!((polls.load(Ordering::Relaxed), count.0.load(Ordering::Relaxed)), (3, 0));
    }

    #[test]
    fn a_task_that_never_rests_gives_way() {
        let (future, count, polls) = restless(usize::MAX);
        let waker = Waker::from(count.clone());
        assert!(std::pin::pin!(future).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!((polls.load(Ordering::Relaxed), count.0.load(Ordering::Relaxed)), (IN_A_ROW, 1));
    }

    #[test]
    fn a_wake_from_outside_reaches_the_task() {
        let kept = Arc::new(std::sync::Mutex::new(None));
        let keep = kept.clone();
        let inner = std::future::poll_fn(move |cx| {
            *keep.lock().unwrap() = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        assert!(std::pin::pin!(Rousing::new(inner)).poll(&mut Context::from_waker(&waker)).is_pending());
        kept.lock().unwrap().take().unwrap().wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
