//! The load on a stdio server without anything between: what its pipes and its answers cost alone.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::message::Question;
use crate::samples::Samples;

#[derive(Debug, Clone, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    question: Question,
    /// Requests under way at a time
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// Seconds that are measured; a fifth as many go before
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// The server answers in the order of asking, so each line belongs to the oldest request.
pub(crate) fn run(plan: &Plan) -> io::Result<Value> {
    let mut child =
        Command::new(std::env::current_exe()?).arg("stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the server has no pipes"));
    };
    let mut answers = BufReader::with_capacity(64 << 10, stdout);
    let mut message = plan.question.line();
    let begins = Instant::now() + Duration::from_secs_f64(plan.seconds / 5.0);
    let ends = begins + Duration::from_secs_f64(plan.seconds);
    let mut under_way = VecDeque::with_capacity(plan.depth);
    let (mut samples, mut total, mut line) = (Samples::default(), 0_usize, Vec::new());
    for _ in 0..plan.depth {
        under_way.push_back(Instant::now());
        stdin.write_all(message.next())?;
    }
    while let Some(started) = under_way.pop_front() {
        line.clear();
        if answers.read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::other("the server ended"));
        }
        if !message.is_result(&line) {
            return Err(io::Error::other(format!("not a result: {}", String::from_utf8_lossy(&line))));
        }
        let ended = Instant::now();
        total += 1;
        if started >= begins && ended <= ends {
            samples.add(ended - started);
        }
        if ended < ends {
            under_way.push_back(ended);
            stdin.write_all(message.next())?;
        }
    }
    drop(stdin);
    child.wait()?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let per_second = samples.count() as f64 / plan.seconds;
    Ok(json!({
        "total": total,
        "per_second": per_second,
        "p50_us": samples.percentile_us(0.5),
        "p99_us": samples.percentile_us(0.99),
    }))
}
