//! A child process that begins its life inside a cgroup, with nothing of its parent but what it is given.
//!
//! `clone3(CLONE_VFORK | CLONE_VM | CLONE_INTO_CGROUP | CLONE_PIDFD | CLONE_CLEAR_SIGHAND)`: no page table is copied, no fork
//! of the child can escape its cgroup, and there is no moment at which its process id could be another's. The calling thread
//! waits until the child has replaced itself or failed, which the child says in memory that both see.
//!
//! Invariants: between clone and execve the child makes system calls only (no allocation, no lock, no function of the C
//! library that touches its state); it inherits the descriptors it is given as 0, 1 and 2 and no other; no signal is blocked
//! or ignored in it.

#![expect(unsafe_code, reason = "clone3 with a stack of its own, and system calls between it and execve")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Bytes of the child's stack until it replaces itself; what it does needs a tenth.
const STACK_BYTES: usize = 64 * 1024;

/// What a child becomes.
#[derive(Debug)]
pub struct Child<'a> {
    pub program: CString,
    pub arguments: Vec<CString>,
    /// The whole environment, `NAME=value`.
    pub environment: Vec<CString>,
    pub directory: CString,
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// The open directory of its cgroup.
    pub cgroup: BorrowedFd<'a>,
    /// `cgroup.procs` of further hierarchies (cgroup v1) it moves itself to.
    pub moves: Vec<BorrowedFd<'a>>,
    pub identity: Option<Identity>,
    /// Resource, soft and hard limit (setrlimit(2)).
    pub limits: Vec<(u32, u64, u64)>,
    /// Neither it nor its children gain privileges by execve (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: bool,
    /// The capabilities it may hold, as a mask; `None`: all of this process's bounding set.
    pub capabilities: Option<u64>,
}

/// Whose rights a child has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A child that runs.
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// Why there is no child: the step that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
pub struct SpawnError {
    pub step: &'static str,
    #[source]
    pub source: io::Error,
}

const STEPS: [&str; 10] = [
    "start a process",
    "make a session",
    "set up standard input and output",
    "enter a cgroup",
    "set a resource limit",
    "limit capabilities",
    "change the group",
    "change the user",
    "enter the working directory",
    "run the program",
];

/// Everything the child reads, prepared by the parent.
struct Plan {
    program: *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    directory: *const libc::c_char,
    stdio: [RawFd; 3],
    moves: *const RawFd,
    move_count: usize,
    uid: u32,
    gid: u32,
    groups: *const u32,
    group_count: usize,
    has_identity: bool,
    limits: *const (u32, u64, u64),
    limit_count: usize,
    no_new_privileges: bool,
    capabilities: u64,
    has_capabilities: bool,
    /// Written by the child: the step and errno of a failure.
    failed_step: usize,
    failed_errno: i32,
}

/// Starts `child`; blocks until it runs its program, which takes a millisecond or two.
///
/// # Errors
/// The step that failed; nothing is left then.
pub fn spawn(child: &Child<'_>) -> Result<Spawned, SpawnError> {
    let argv = pointers(&child.arguments);
    let envp = pointers(&child.environment);
    let moves: Vec<RawFd> = child.moves.iter().map(|fd| fd.as_raw_fd()).collect();
    let identity = child.identity.as_ref();
    let mut plan = Plan {
        program: child.program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        directory: child.directory.as_ptr(),
        stdio: [child.stdin.as_raw_fd(), child.stdout.as_raw_fd(), child.stderr.as_raw_fd()],
        moves: moves.as_ptr(),
        move_count: moves.len(),
        uid: identity.map_or(0, |identity| identity.uid),
        gid: identity.map_or(0, |identity| identity.gid),
        groups: identity.map_or(ptr::null(), |identity| identity.groups.as_ptr()),
        group_count: identity.map_or(0, |identity| identity.groups.len()),
        has_identity: identity.is_some(),
        limits: child.limits.as_ptr(),
        limit_count: child.limits.len(),
        no_new_privileges: child.no_new_privileges,
        capabilities: child.capabilities.unwrap_or_default(),
        has_capabilities: child.capabilities.is_some(),
        failed_step: 0,
        failed_errno: 0,
    };
    let mut pidfd: RawFd = -1;
    let pid = with_signals_blocked(|| clone(&mut plan, &mut pidfd, child.cgroup.as_raw_fd()))?;
    // SAFETY: the kernel wrote a descriptor of ours there, since clone3 succeeded.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: the child wrote to this memory, behind the compiler's back, before the parent went on.
    let (step, errno) =
        unsafe { (ptr::read_volatile(&raw const plan.failed_step), ptr::read_volatile(&raw const plan.failed_errno)) };
    if step == 0 {
        return Ok(Spawned { pid, pidfd });
    }
    super::pidfd::reap(&pidfd).ok();
    Err(SpawnError { step: STEPS.get(step).copied().unwrap_or(STEPS[0]), source: io::Error::from_raw_os_error(errno) })
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// A signal handler must not run in the child while it shares our memory.
fn with_signals_blocked<T>(work: impl FnOnce() -> Result<T, SpawnError>) -> Result<T, SpawnError> {
    let mut before = SigSet::empty();
    let failed = |errno: nix::Error| SpawnError { step: STEPS[0], source: errno.into() };
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)).map_err(failed)?;
    let result = work();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).map_err(failed)?;
    result
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone(plan: &mut Plan, pidfd: &mut RawFd, cgroup: RawFd) -> Result<u32, SpawnError> {
    let failed = |source| SpawnError { step: STEPS[0], source };
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let arguments = CloneArgs {
        flags: u64::from(flags.cast_unsigned()) | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP,
        pidfd: ptr::from_mut(pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: stack.as_mut_ptr() as u64,
        stack_size: (stack.len() * size_of::<u128>()) as u64,
        cgroup: u64::try_from(cgroup).map_err(|_closed| failed(io::Error::from(io::ErrorKind::InvalidInput)))?,
        ..CloneArgs::default()
    };
    // SAFETY: the stack, the arguments and the plan outlive the child's use of them, because CLONE_VFORK holds this thread
    // until the child has replaced itself or ended; the child never returns from `run`.
    let result = unsafe { clone3(&raw const arguments, plan) };
    drop(stack);
    u32::try_from(result)
        .map_err(|_negative| failed(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO))))
}

/// clone3(2): the child calls `run(plan)` on its own stack; the parent gets the child's id or a negative errno.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(arguments: *const CloneArgs, plan: *mut Plan) -> i64 {
    let result: i64;
    // SAFETY: the child's stack pointer is the aligned top of its stack; everything the parent relies on is declared clobbered
    // or kept, and the child ends inside `run`.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {plan}",
            "call {run}",
            "ud2",
            "2:",
            plan = in(reg) plan,
            run = sym run,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") size_of::<CloneArgs>(),
            // Not `lateout`: the plan, which the child needs afterwards, must not lie in them.
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// clone3(2): the child calls `run(plan)` on its own stack; the parent gets the child's id or a negative errno.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(arguments: *const CloneArgs, plan: *mut Plan) -> i64 {
    let result: i64;
    // SAFETY: as on x86-64.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {plan}",
            "bl {run}",
            "brk 1",
            "2:",
            plan = in(reg) plan,
            run = sym run,
            in("x8") libc::SYS_clone3,
            inlateout("x0") arguments => result,
            in("x1") size_of::<CloneArgs>(),
        );
    }
    result
}

/// The child: system calls until execve.
unsafe extern "C" fn run(plan: *mut Plan) -> ! {
    // SAFETY: the parent prepared the plan and waits; nobody else uses it.
    let plan = unsafe { &mut *plan };
    // SAFETY: `prepare` makes system calls on what the plan holds.
    let step = unsafe { prepare(plan) };
    // SAFETY: errno is this thread's own, which the parent does not use while it waits.
    plan.failed_errno = unsafe { *libc::__errno_location() };
    plan.failed_step = step;
    loop {
        // SAFETY: ends this process and touches nothing else.
        unsafe { libc::syscall(libc::SYS_exit_group, 127) };
    }
}

/// Carries the plan out; returns only if a step failed, with its number.
unsafe fn prepare(plan: &Plan) -> usize {
    // SAFETY: raw system calls with the plan's own memory; those that take credentials change only this task, since they do
    // not go through the C library.
    unsafe {
        if libc::syscall(libc::SYS_setsid) < 0 {
            return 1;
        }
        if !standard_streams(plan.stdio) {
            return 2;
        }
        for index in 0..plan.move_count {
            let fd = *plan.moves.add(index);
            if libc::syscall(libc::SYS_write, fd, c"0".as_ptr(), 1) != 1 {
                return 3;
            }
        }
        if libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) < 0 {
            return 2;
        }
        for index in 0..plan.limit_count {
            let (resource, soft, hard) = *plan.limits.add(index);
            let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
            if libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, ptr::null::<libc::c_void>()) < 0 {
                return 4;
            }
        }
        // Not what the service manager chose for the agent's own files.
        libc::syscall(libc::SYS_umask, 0o022);
        if plan.has_capabilities && !limit_capabilities(plan.capabilities) {
            return 5;
        }
        if plan.has_identity {
            let (uid, gid) = (plan.uid, plan.gid);
            if libc::syscall(libc::SYS_setgroups, plan.group_count, plan.groups) < 0
                || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
            {
                return 6;
            }
            if libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0 {
                return 7;
            }
        }
        if libc::syscall(libc::SYS_chdir, plan.directory) < 0 {
            return 8;
        }
        if plan.no_new_privileges && libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            return 5;
        }
        default_signals();
        let none: u64 = 0;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null::<libc::c_void>(), 8);
        libc::syscall(libc::SYS_execve, plan.program, plan.argv, plan.envp);
        9
    }
}

/// Has every signal do what it does by default: `CLONE_CLEAR_SIGHAND` leaves those that are ignored, and this process ignores
/// SIGPIPE, without which a shell's `yes | head` never ends.
unsafe fn default_signals() {
    // The kernel's `struct sigaction`: handler SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the handlers are the child's own (no CLONE_SIGHAND). SIGKILL and SIGSTOP are refused, as they have no other.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<libc::c_void>(), 8);
        }
    }
}

/// Puts the three descriptors at 0, 1 and 2, whatever numbers they have.
unsafe fn standard_streams(from: [RawFd; 3]) -> bool {
    // SAFETY: system calls on numbers.
    unsafe {
        let mut high = [0; 3];
        // First above 2, so that none overwrites another that is still needed.
        for (index, fd) in from.into_iter().enumerate() {
            let copy = libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD, 3);
            if copy < 0 {
                return false;
            }
            high[index] = copy;
        }
        for (target, fd) in high.into_iter().enumerate() {
            if libc::syscall(libc::SYS_dup3, fd, target, 0) < 0 {
                return false;
            }
        }
    }
    true
}

/// Takes every capability that is not in `mask` out of the bounding set (capabilities(7)).
unsafe fn limit_capabilities(mask: u64) -> bool {
    for capability in 0..64_u64 {
        if mask >> capability & 1 == 1 {
            continue;
        }
        // SAFETY: system calls on numbers; EINVAL says that this kernel has no such capability.
        unsafe {
            if libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                return *libc::__errno_location() == libc::EINVAL;
            }
        }
    }
    true
}
