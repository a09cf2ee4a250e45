//! Why the kernel takes no program or map of ours: in one line, with what to do about it.
#![allow(clippy::wildcard_enum_match_arm, reason = "aya's errors are many, and most of them speak for themselves")]

use std::io;

use anyhow::anyhow;
use aya::{EbpfError, maps::MapError, programs::ProgramError};

const NOT_PERMITTED: &str = "is not permitted: run as root, or with CAP_BPF and CAP_NET_ADMIN (before Linux 5.11 also \
                             with unlimited locked memory: ulimit -l, LimitMEMLOCK)";
/// Where all helpers of the program are.
const OLDEST_KERNEL: &str = "Linux 6.0 or newer is needed";
/// Older kernels know the helpers by number only.
const HELPERS: [(&str, &str); 6] = [
    ("99", "bpf_skc_lookup_tcp"),
    ("110", "bpf_tcp_gen_syncookie"),
    ("118", "bpf_jiffies64"),
    ("188", "bpf_xdp_get_buff_len"),
    ("206", "bpf_tcp_raw_check_syncookie_ipv4"),
    ("207", "bpf_tcp_raw_check_syncookie_ipv6"),
];
/// How lines of the verifier's log begin that say nothing of a fault.
const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "peak_states "];

/// The maps, or the object as a whole.
pub(super) fn object(error: EbpfError) -> anyhow::Error {
    match error {
        EbpfError::MapError(error) => map(error),
        EbpfError::ProgramError(error) => program(error),
        other => anyhow!(other).context("the embedded XDP program cannot be prepared"),
    }
}

fn map(error: MapError) -> anyhow::Error {
    match error {
        MapError::CreateError { name, io_error } => map_refused(&name, &io_error),
        MapError::PinError { name, error } => {
            let name = name.unwrap_or_default();
            anyhow!(error).context(format!("the XDP program's map {name} cannot be pinned (steering.bpffs)"))
        }
        other => anyhow!(other).context("the kernel refused the XDP program's maps"),
    }
}

fn map_refused(name: &str, error: &io::Error) -> anyhow::Error {
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NOT_PERMITTED.to_owned(),
        Some(libc::ENOMEM) => "found too little memory: allow this service more (MemoryMax)".to_owned(),
        Some(libc::EINVAL | libc::E2BIG | libc::EOPNOTSUPP) => {
            format!("is beyond this kernel ({error}): {OLDEST_KERNEL}")
        }
        _ => format!("failed: {error}"),
    };
    anyhow!("making the XDP program's map {name} {why}")
}

/// A program.
pub(super) fn program(error: ProgramError) -> anyhow::Error {
    match error {
        // Its own text has the whole log.
        ProgramError::LoadError { io_error, verifier_log } => program_refused(&io_error, &verifier_log.to_string()),
        ProgramError::MapError(error) => map(error),
        other => anyhow!(other).context("the kernel refused the XDP program"),
    }
}

fn program_refused(error: &io::Error, log: &str) -> anyhow::Error {
    let is_statistics = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
    let complaint = log.lines().map(str::trim).rfind(|line| !line.is_empty() && !is_statistics(line));
    match (complaint, error.raw_os_error()) {
        (Some(complaint), _) => match missing_helper(complaint) {
            Some(helper) => anyhow!("this kernel has no helper {helper} for XDP programs: {OLDEST_KERNEL}"),
            None => anyhow!("the kernel's verifier refused the XDP program ({error}): {complaint}"),
        },
        (None, Some(libc::EPERM)) => anyhow!("loading the XDP program {NOT_PERMITTED}"),
        (None, Some(libc::EINVAL)) => anyhow!("this kernel does not know programs of this kind: {OLDEST_KERNEL}"),
        (None, Some(libc::ENOMEM)) => anyhow!("the kernel has no memory for the XDP program"),
        (None, _) => anyhow!("the kernel refused the XDP program: {error}"),
    }
}

/// The helper that the verifier does not know, or not for this kind of program.
fn missing_helper(complaint: &str) -> Option<&str> {
    let starts = ["unknown func ", "invalid func ", "program of this type cannot use helper "];
    let helper = starts.iter().find_map(|start| complaint.strip_prefix(start))?;
    let (name, number) = helper.split_once('#')?;
    if name != "unknown" {
        return Some(name);
    }
    Some(HELPERS.iter().find(|(known, _)| *known == number).map_or(helper, |(_, name)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32, log: &str) -> String {
        format!("{:#}", program_refused(&io::Error::from_raw_os_error(errno), log))
    }

    /// From Linux 6.18, with the log's level that the loader asks for.
    const BAD_ACCESS: &str = "invalid access to packet, off=0 size=8, R2(id=0,off=0,r=0)\nR2 offset is outside of the \
                              packet\nverification time 26 usec\nstack depth 0\nprocessed 2 insns (limit 1000000) \
                              max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n";
    const FOREIGN_HELPER: &str = "program of this type cannot use helper bpf_skb_load_bytes#26\nverification time 47 \
                                  usec\nstack depth 0\nprocessed 1 insns (limit 1000000) max_states_per_insn 0 \
                                  total_states 0 peak_states 0 mark_read 0\n";
    const UNKNOWN_HELPER: &str = "invalid func unknown#3999\nverification time 10 usec\nstack depth 0\nprocessed 1 \
                                  insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read \
                                  0\n";
    const TOO_LARGE: &str = "BPF program is too large. Processed 1000001 insn\nverification time 872683 usec\nstack \
                             depth 0\nprocessed 1000001 insns (limit 1000000) max_states_per_insn 4 total_states 25001 \
                             peak_states 25001 mark_read 0\n";

    #[test]
    fn of_the_verifiers_log_only_the_complaint_is_told() {
        let told = refused(libc::EACCES, BAD_ACCESS);
        assert!(told.ends_with("(Permission denied (os error 13)): R2 offset is outside of the packet"), "{told}");
        assert_eq!(told.lines().count(), 1);
        let told = refused(libc::E2BIG, TOO_LARGE);
        assert!(told.ends_with("BPF program is too large. Processed 1000001 insn"), "{told}");
        let verbose =
            format!("{}math between pkt pointer and register with unbounded min value\n", "0: (b7)\n".repeat(99));
        assert!(refused(libc::EACCES, &verbose).ends_with("unbounded min value"));
    }

    #[test]
    fn a_kernel_without_a_helper_is_told_which() {
        for (log, helper) in [
            ("unknown func bpf_skc_lookup_tcp#99\nprocessed 400 insns (limit 1000000)\n", "bpf_skc_lookup_tcp"),
            (FOREIGN_HELPER, "bpf_skb_load_bytes"),
            (UNKNOWN_HELPER, "unknown#3999"),
            ("invalid func unknown#207\nprocessed 9 insns\n", "bpf_tcp_raw_check_syncookie_ipv6"),
        ] {
            let told = refused(libc::EINVAL, log);
            assert_eq!(
                told,
                format!("this kernel has no helper {helper} for XDP programs: Linux 6.0 or newer is needed")
            );
        }
    }

    #[test]
    fn without_a_log_the_error_number_speaks() {
        assert!(refused(libc::EPERM, "").contains("run as root"));
        assert!(refused(libc::EINVAL, "processed 0 insns\n").contains("Linux 6.0"));
        assert!(refused(libc::ENOMEM, "").contains("memory"));
        assert!(refused(libc::EIO, "").ends_with("(os error 5)"));
    }

    #[test]
    fn a_map_that_cannot_be_made_is_named() {
        let told = |errno: i32| {
            let io_error = io::Error::from_raw_os_error(errno);
            format!("{:#}", object(EbpfError::MapError(MapError::CreateError { name: "CHAINS".into(), io_error })))
        };
        for (errno, word) in [
            (libc::EPERM, "ulimit -l"),
            (libc::ENOMEM, "MemoryMax"),
            (libc::EINVAL, "Linux 6.0"),
            (libc::EIO, "error 5"),
        ] {
            let told = told(errno);
            assert!(told.contains("map CHAINS") && told.contains(word), "{told}");
            assert_eq!(told.lines().count(), 1);
        }
    }
}
