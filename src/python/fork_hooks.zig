//! What `os.register_at_fork` calls: a child of the application's has nothing of the server.
//!
//! These are functions of C and not of Python, so that no exception that was set for the thread
//! (`request_action = "raise"`) can come in their middle. GIL held.

const core = @import("core");
const capi = @import("capi.zig");
const admin_object = @import("admin_object.zig");
const server_object = @import("server_object.zig");
const Object = capi.Object;

/// The lock may be that of another thread that forks and waits for the GIL meanwhile: it is never
/// waited for with the GIL.
pub fn before() capi.Error!*Object {
    while (!core.forks.try_begin()) {
        const state = capi.PyEval_SaveThread();
        core.sys.sleep_ms(1);
        capi.PyEval_RestoreThread(state);
    }
    return capi.none();
}

pub fn after_in_parent() capi.Error!*Object {
    core.forks.end_in_parent();
    return capi.none();
}

pub fn after_in_child() capi.Error!*Object {
    if (core.forks.end_in_child()) {
        server_object.close_in_child();
        admin_object.close_in_child();
    }
    return capi.none();
}
