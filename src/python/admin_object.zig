//! What the methods of `_core.Admin` do.
//!
//! One admin for a process; it is made before the application is imported and freed never, since
//! its helper thread may be stuck without the GIL. GIL held, but in `wait`.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const server_object = @import("server_object.zig");
const Object = capi.Object;
const Admin = core.admin.Admin;

const gpa = std.heap.c_allocator;

/// The one of this process.
var opened: ?*Admin = null;

pub fn create(options: *Object, listeners: *Object) capi.Error!?*anyopaque {
    const own = try server_object.read_options(core.admin.Options, options);
    var fds: [core.admin.listeners_max]core.sys.Fd = undefined;
    const count: usize = @intCast(@max(0, capi.PyList_Size(listeners)));
    if (count > fds.len) return capi.raise(capi.PyExc_ValueError, "too many admin listeners");
    for (fds[0..count], 0..) |*fd, index| {
        const number = capi.PyList_GetItem(listeners, @intCast(index)) orelse return error.Raised;
        fd.* = try server_object.read_integer(core.sys.Fd, number, "listener");
    }
    opened = Admin.create(gpa, own, fds[0..count]) catch |err|
        return server_object.raise_start_error(err);
    return opened;
}

fn admin_of(handle: ?*anyopaque) capi.Error!*Admin {
    const pointer = handle orelse
        return capi.raise(capi.PyExc_RuntimeError, "the admin was not initialised");
    if (core.forks.is_child()) return capi.raise(
        capi.PyExc_RuntimeError,
        "this process was forked from the server's and has no admin listener",
    );
    return @ptrCast(@alignCast(pointer));
}

pub fn stage(handle: ?*anyopaque, name: *Object) capi.Error!*Object {
    const admin = try admin_of(handle);
    var size: capi.ssize = 0;
    const text = capi.PyUnicode_AsUTF8AndSize(name, &size) orelse return error.Raised;
    const given = std.meta.stringToEnum(core.health.Stage, text[0..@intCast(size)]) orelse
        return capi.raise(capi.PyExc_ValueError, "no such stage");
    admin.set_stage(given);
    return capi.none();
}

pub fn close_in_child() void {
    if (opened) |admin| admin.close_in_child();
}

pub fn serve(handle: ?*anyopaque, server: ?*anyopaque) capi.Error!*Object {
    const admin = try admin_of(handle);
    admin.serve(try server_object.server_of(server));
    return capi.none();
}

/// The life of the helper thread: waits without the GIL until there is something that needs
/// Python, and returns its name.
pub fn wait(handle: ?*anyopaque) capi.Error!*Object {
    const admin = try admin_of(handle);
    while (true) {
        const state = capi.PyEval_SaveThread();
        const errand = admin.inspector.wait();
        capi.PyEval_RestoreThread(state);
        admin.inspector.note_gil();
        admin.wake();
        if (errand == .probe) continue;
        const name: [:0]const u8 = @tagName(errand);
        return capi.interned(name);
    }
}

/// Gives the stacks, as JSON, to those who wait for them.
pub fn answer(handle: ?*anyopaque, text: *Object) capi.Error!*Object {
    const admin = try admin_of(handle);
    if (!capi.is_bytes(text)) return capi.raise(capi.PyExc_TypeError, "the answer is bytes");
    admin.inspector.answer(capi.bytes_of(text)) catch {
        _ = capi.PyErr_NoMemory();
        return error.Raised;
    };
    admin.wake();
    return capi.none();
}

/// Makes `wait` return "stop".
pub fn dismiss(handle: ?*anyopaque) capi.Error!*Object {
    const admin = try admin_of(handle);
    admin.inspector.ask(.stop);
    return capi.none();
}

/// Closes the listeners and ends the thread, which holds no lock for long.
pub fn stop(handle: ?*anyopaque) capi.Error!*Object {
    const admin = try admin_of(handle);
    const state = capi.PyEval_SaveThread();
    admin.stop();
    capi.PyEval_RestoreThread(state);
    return capi.none();
}
