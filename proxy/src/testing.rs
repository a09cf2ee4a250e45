//! Helpers of the daemon's own tests.

use std::process::Command;

/// Runs a test in a network namespace of its own, which ends with the thread. Without the right to make one the test
/// is skipped and says so.
pub(crate) fn in_network_namespace(name: &'static str, test: impl AsyncFnOnce() + Send + 'static) {
    let run = move || {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped {name}: needs CAP_SYS_ADMIN for a network namespace ({error})");
            return;
        }
        // One thread only: the namespace belongs to the thread.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs `ip` with these words in the caller's namespace.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}
