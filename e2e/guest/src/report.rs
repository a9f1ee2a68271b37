//! What the machine outside is told: a JSON object a line on the second serial line.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::Write;

/// The serial line beside the console, so that no message of the kernel lands in the middle of a line.
const LINE: &str = "/dev/ttyS1";

pub struct Report(File);

/// `e2e::vm::report::Line` reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Line<'a> {
    Checked { name: &'a str, error: Option<String> },
    End,
}

impl Report {
    pub fn open() -> Result<Self> {
        Ok(Self(File::options().write(true).open(LINE).context(LINE)?))
    }

    pub fn checked(&mut self, name: &str, checked: Result<()>) -> Result<()> {
        self.say(&Line::Checked { name, error: checked.err().map(|error| format!("{error:#}")) })
    }

    /// Without this line, the machine has stopped before its time.
    pub fn end(&mut self) -> Result<()> {
        self.say(&Line::End)
    }

    fn say(&mut self, line: &Line<'_>) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.0.write_all(&text).context("write the report")?;
        nix::sys::termios::tcdrain(&self.0).context("send the report")
    }
}
