//! What the kernel does not allow.

use super::*;

/// Loads without any privilege, in a thread of its own; what is said of it.
fn refused_to_nobody(pins: PathBuf) -> String {
    const NOBODY: libc::uid_t = 65_534;
    let load = move || {
        // SAFETY: the system call takes numbers only. It is called past libc, which would change all threads; this one
        // ends with it.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(changed, 0);
        Dataplane::load(&pins, &settings(&pins)).err().map(|error| format!("{error:#}"))
    };
    std::thread::spawn(load).join().unwrap().expect("nobody may load nothing")
}

#[test]
fn whoever_has_no_right_is_told_of_it_in_one_line() {
    if let Err(reason) = probe() {
        println!("skipped: {reason}");
        return;
    }
    let bpffs = BpfFs::mount();
    let told = refused_to_nobody(bpffs.0.path().to_owned());
    assert!(told.contains("CAP_BPF") && told.lines().count() == 1, "{told}");
    assert!(!bpffs.0.path().join(maps::CONTROL).exists());
}
