//! The timer of one connection.
//!
//! hyper sets one for the head of every request and drops it when the head is there. With the runtime each would cost an
//! entry, and a system call where it is due before all others. So a connection keeps one alarm that is moved only when it
//! rings: to when the head that is waited for then is due.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// For deadlines that are always equally far away: an earlier one than before is kept all the same, and moves the alarm.
#[derive(Debug, Clone, Default)]
pub struct Alarm(Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>);

#[derive(Debug)]
struct Waiting {
    alarm: Alarm,
    deadline: tokio::time::Instant,
}

impl Timer for Alarm {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Waiting { alarm: self.clone(), deadline: deadline.into() })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

impl Sleep for Waiting {}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alarm = alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.deadline)));
        loop {
            if alarm.deadline() > self.deadline {
                alarm.as_mut().reset(self.deadline);
            }
            ready!(alarm.as_mut().poll(cx));
            if alarm.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            // It rang for a head that came in time.
            alarm.as_mut().reset(self.deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_wait_ends_at_its_own_deadline_whatever_was_waited_for_before() {
        let alarm = Alarm::default();
        let start = tokio::time::Instant::now();
        // Given up half way, as hyper does when a head has arrived.
        tokio::time::timeout(SECOND, alarm.sleep(10 * SECOND)).await.unwrap_err();
        alarm.sleep(10 * SECOND).await;
        assert_eq!(start.elapsed().as_secs(), 11);
        // The alarm has rung already, long before the next is set.
        tokio::time::sleep(20 * SECOND).await;
        alarm.sleep(10 * SECOND).await;
        assert_eq!(start.elapsed().as_secs(), 41);
        tokio::time::timeout(SECOND, alarm.sleep(10 * SECOND)).await.unwrap_err();
        alarm.sleep(2 * SECOND).await;
        assert_eq!(start.elapsed().as_secs(), 44);
    }
}
