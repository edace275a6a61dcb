//! Counting what test binaries report, while their output goes by.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many tests ended how.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    /// Runs `command`, shows its output as it comes and adds up its tests.
    pub(crate) fn count(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {command:?}"))?;
        let output = child.stdout.take().context("the child's output is piped")?;
        let failed_before = self.failed;
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            print(&line);
            self.add(&line);
        }
        let status = child.wait()?;
        if status.success() {
            return Ok(());
        }
        if self.failed == failed_before {
            // It did not live to report: a crash, or a failed build.
            self.failed += 1;
        }
        bail!("{status}")
    }

    /// Understands `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                Some((Ok(number), "ignored")) => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Writes a line to standard output, where the result of this chore belongs.
pub(crate) fn print(line: &str) {
    let mut output = std::io::stdout().lock();
    if writeln!(output, "{line}").is_err() {
        // Nobody reads on: the exit code still tells.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut tally = Tally::default();
        tally.add("running 3 tests");
        tally.add("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s");
        tally.add("test result: FAILED. 1 passed; 2 failed; 4 ignored; 0 measured; 0 filtered out; finished in 1.20s");
        assert_eq!(tally, Tally { passed: 4, failed: 2, ignored: 4 });
    }

    #[test]
    fn a_binary_that_dies_without_a_report_counts_as_failed() {
        let mut tally = Tally::default();
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        assert!(tally.count(&mut command).is_err());
        assert_eq!(tally.failed, 1);
    }
}
