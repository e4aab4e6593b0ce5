//! How much memory a process has had at most.

use std::process::Command;

/// Peaks in bytes; none where the system does not tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peaks {
    /// Services, runner and client: this process.
    pub(super) stack: Option<u64>,
    pub(super) nats_server: Option<u64>,
}

impl Peaks {
    pub(super) fn now(nats_server: Option<u32>) -> Self {
        Self { stack: of(std::process::id()), nats_server: nats_server.and_then(of) }
    }
}

/// What a process has had at most. Linux keeps the peak; elsewhere it is what it has now.
pub(super) fn of(pid: u32) -> Option<u64> {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => line(&status, "VmHWM:"),
        Err(_) => resident(pid),
    }
}

/// What a process has now.
pub(super) fn resident(pid: u32) -> Option<u64> {
    let output = Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output().ok()?;
    let kilobytes: u64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn line(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stands_in_the_status() {
        let status = "Name:\terrand\nVmPeak:\t  999999 kB\nVmHWM:\t   51234 kB\nVmRSS:\t   40000 kB\n";
        assert_eq!(line(status, "VmHWM:"), Some(51_234 * 1024));
        assert_eq!(line("Name:\terrand\n", "VmHWM:"), None);
    }
}
