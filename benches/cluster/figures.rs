//! Figures, and how they are printed.

/// One figure.
pub struct Row {
    pub figure: &'static str,
    pub goal: &'static str,
    pub measured: String,
    pub method: String,
}

/// The cores that this process may use: to be asked before it is given one of them.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// Prints the figures below what they were measured `on`.
pub fn print(on: &str, cores: usize, rows: &[Row]) {
    println!("{on}, {cores} cores\n");
    println!("| figure | goal | measured | method |\n| --- | --- | --- | --- |");
    for Row { figure, goal, measured, method } in rows {
        println!("| {figure} | {goal} | {measured} | {method} |");
    }
}

#[expect(clippy::cast_precision_loss, reason = "one digit after the point")]
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}
