//! Every `unsafe` block of the program, behind functions that are safe to call.
//!
//! | file | system calls about |
//! |---|---|
//! | `secret_pages`, `protection_key` | the memory that holds the key |
//! | `wiping_allocator` | no system call: memory that is wiped when it is freed |
//! | `environment` | variables and arguments, and wiping them |
//! | `privileges`, `users` | the privileges that the process gives up; its user |
//! | `sandbox` | Landlock, seccomp, executable memory |
//! | `program` | the program's own segments |
//! | `early` | the steps before `main` |
//! | `fork`, `child` | forked processes |
//! | `descriptors`, `fd_passing`, `paths` | descriptors, messages that carry them, files by name |
//! | `sockets`, `signals`, `terminal` | options of sockets; signals; the controlling terminal |
//! | `boot_timer` | a timer that goes on while the machine sleeps |
//! | `machine` | facts about the machine and the thread, random bytes |
//! | `result` | no system call: turns a result of -1 into an error |
//! | `windows` | no system call: the vector instructions of the search for a reflected key |

mod boot_timer;
pub mod child;
mod descriptors;
mod early;
mod environment;
pub mod fd_passing;
mod fork;
mod machine;
pub mod paths;
mod privileges;
mod program;
mod protection_key;
mod result;
mod sandbox;
mod secret_pages;
mod signals;
mod sockets;
mod terminal;
mod users;
pub mod windows;
mod wiping_allocator;

pub use boot_timer::BootTimer;
pub use descriptors::{
    Inherited, Reached, Standard, inherited_descriptors, make_room_for_descriptors,
    raise_open_files, read, replace, take_descriptors, wait_readable,
};
pub use early::{FirstSteps, first_steps, found_first};
pub use environment::{
    wipe_former_variables, wipe_values, wipe_variables, with_arguments, with_variable,
};
pub use fork::{Child, end_with_parent, fork, new_session};
pub use machine::{
    kernel_version, page_size, random, thread_id, time_since_boot, with_wide_vectors,
};
pub use privileges::{
    become_user, deny_dumps, deny_new_privileges, disable_core_dumps, drop_capabilities,
    empty_bounding_set,
};
pub use program::{Sealed, prefault_code, seal_program};
pub use protection_key::{OpenPages, ProtectedPages, ProtectionKey};
pub use sandbox::{
    Rights, Ruleset, deny_executable_memory, filter_thread, inherited_filter,
    is_executable_memory_denied, landlock, seccomp,
};
pub use secret_pages::{SecretMemory, SecretPages};
pub use signals::{
    SignalFd, file_size_limit, ignore_file_size_signal, ignore_signals, is_ignored, raise,
    raise_in_group, unblock,
};
pub use sockets::{
    CLIENT_BUFFER, UPSTREAM_UNSENT, bound_buffers, is_tcp_listener, listen_for_bursts, receive,
    reset_on_close, send, set_stream_options, set_upstream_options, socket_diagnosis,
};
pub use terminal::{QuietTerminal, has_terminal, is_in_foreground};
pub use users::{UserIds, group_of, user_id, user_ids, user_named};
pub use wiping_allocator::{WipingAllocator, wipe_freed_memory};
