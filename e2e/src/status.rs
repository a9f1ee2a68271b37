//! Tells what a lab is doing.
//!
//! Owns the table. Looks only; a lab that is half there is shown as it is.

use comfy_table::{Table, presets::NOTHING};

use crate::lab::{Lab, LabError, Node};
use crate::machine::init::ServiceState;

/// The lab's machines and their services, as a table.
///
/// # Errors
/// When a record is unreadable.
pub fn table(lab: &Lab) -> Result<String, LabError> {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["MACHINE", "ADDRESS", "FIRST PROCESS", "SERVICES"]);
    for node in lab.machines() {
        table.add_row(row(&node)?);
    }
    Ok(table.to_string())
}

fn row(node: &Node) -> Result<[String; 4], LabError> {
    let first = node.first_process()?;
    let services = match first {
        Some(_) => node.services()?.iter().map(|(name, state)| describe(name, state)).collect::<Vec<_>>().join(", "),
        None => "-".to_owned(),
    };
    let first = first.map_or_else(|| "down".to_owned(), |process| process.pid.to_string());
    Ok([node.name().to_owned(), node.address().to_string(), first, services])
}

fn describe(name: &str, state: &ServiceState) -> String {
    match (state.pid, state.starts, &state.last_end) {
        (Some(_), 0..=1, _) => name.to_owned(),
        (Some(_), starts, _) => format!("{name} (started {starts} times)"),
        (None, _, Some(end)) => format!("{name} (down: {end})"),
        (None, _, None) => format!("{name} (not started)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_died_says_how() {
        let died = ServiceState { pid: None, starts: 2, last_end: Some("exit code 1".into()) };
        assert_eq!(describe("kubelet", &died), "kubelet (down: exit code 1)");
        let fine = ServiceState { pid: Some(7), starts: 1, last_end: None };
        assert_eq!(describe("kubelet", &fine), "kubelet");
    }
}
