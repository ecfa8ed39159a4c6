//! `cargo xtask bench NAME`: the figures that the documentation promises, as ratios from one run.

#[cfg(target_os = "linux")]
pub(crate) mod docker;
pub(crate) mod gateway;
mod load;
pub(crate) mod local;
mod mcp;
#[cfg(target_os = "linux")]
pub(crate) mod operator;
mod process;
pub(crate) mod soak;
mod stage;

/// The middle of some measurements; half way between two if their number is even.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
