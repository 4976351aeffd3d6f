//! `x-wsgiorg.suspend` and `x-wsgiorg.fdevent.*`: a response waits for an event of the application
//! without holding a thread (the two specifications of the Python Web-SIG).
//!
//! Each callable makes a `Suspension`, which takes effect when the application yields an empty
//! string next. `resume` is an object of its own, since any thread may call it at any time, long
//! after the request too. GIL held.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const call_module = @import("call.zig");
const Object = capi.Object;
const Call = call_module.Call;
const Server = core.server.Server;
const Suspension = core.suspension.Suspension;

/// What `suspend` returns.
const Resume = extern struct {
    head: Object,
    server: *Server,
    suspension: *Suspension,
};

var type_object: ?*capi.Type = null;

pub fn init_type() capi.Error!void {
    type_object = capi.PyType_FromSpec(&spec) orelse return error.Raised;
}

fn of(object: *Object) *Resume {
    return @ptrCast(@alignCast(object));
}

// ---- suspend -----------------------------------------------------------------------------------

fn suspend_call(
    object: ?*Object,
    arguments: [*]const *Object,
    count: capi.ssize,
) callconv(.c) ?*Object {
    return begin(call_module.of(object), arguments[0..@intCast(count)]) catch null;
}

fn begin(call: *Call, arguments: []const *Object) capi.Error!*Object {
    if (arguments.len > 1) return capi.raise(
        capi.PyExc_TypeError,
        "suspend takes, at most, a timeout in milliseconds",
    );
    const timeout = if (arguments.len == 1) try timeout_ms(arguments[0], 1) else null;
    const suspension = try arm(call, timeout);
    const resumer = try capi.allocate(Resume, type_object.?);
    resumer.server = call.crew.?.server;
    resumer.suspension = suspension.retain();
    return &resumer.head;
}

/// Milliseconds out of a number of units that long; null for None.
fn timeout_ms(object: *Object, unit_ms: f64) capi.Error!?u64 {
    if (capi.is_none(object)) return null;
    const number = capi.PyFloat_AsDouble(object);
    if (number == -1 and capi.PyErr_Occurred() != null) return error.Raised;
    if (!(number >= 0)) return capi.raise(
        capi.PyExc_ValueError,
        "a timeout is None or a number that is not negative",
    );
    const total = @ceil(number * unit_ms);
    // Some centuries are as good as for ever.
    return if (total >= 1e13) null else @intFromFloat(total);
}

/// The suspension that the next empty string begins; the last one counts.
fn arm(call: *Call, timeout: ?u64) capi.Error!*Suspension {
    if (core.forks.is_child()) return call_module.raise_in_child();
    const crew = call.crew orelse return capi.raise(
        capi.PyExc_RuntimeError,
        "suspend and fdevent are for the thread that runs the response, while it does",
    );
    const token = crew.connection.token();
    const made = Suspension.create(std.heap.c_allocator, token, timeout) catch {
        _ = capi.PyErr_NoMemory();
        return error.Raised;
    };
    forget(call.suspension);
    call.suspension = made;
    return made;
}

/// Ends a suspension that was asked for and did not begin.
pub fn forget(asked_for: ?*Suspension) void {
    const suspension = asked_for orelse return;
    _ = suspension.end();
    suspension.release(std.heap.c_allocator);
}

/// The suspension that was asked for last; its reference goes to the caller.
pub fn take(call: *Call) ?*Suspension {
    defer call.suspension = null;
    return call.suspension;
}

// ---- fdevent -----------------------------------------------------------------------------------

fn readable(
    object: ?*Object,
    arguments: [*]const *Object,
    count: capi.ssize,
) callconv(.c) ?*Object {
    return watch(object, arguments[0..@intCast(count)], .readable) catch null;
}

fn writable(
    object: ?*Object,
    arguments: [*]const *Object,
    count: capi.ssize,
) callconv(.c) ?*Object {
    return watch(object, arguments[0..@intCast(count)], .writable) catch null;
}

/// Returns the empty string that has to be yielded.
fn watch(
    object: ?*Object,
    arguments: []const *Object,
    what: core.sys.WaitFor,
) capi.Error!*Object {
    if (arguments.len < 1 or arguments.len > 2) return capi.raise(
        capi.PyExc_TypeError,
        "fdevent takes a descriptor and, at most, a timeout in seconds",
    );
    const timeout = if (arguments.len == 2) try timeout_ms(arguments[1], 1000) else null;
    const fd = capi.PyObject_AsFileDescriptor(arguments[0]);
    if (fd < 0) return error.Raised;
    // The application may close its own, or wait for it in another response too.
    const copy = core.sys.duplicate(fd) orelse return capi.raise(
        capi.PyExc_OSError,
        "the descriptor is not open, or the process has no more descriptors",
    );
    const suspension = arm(call_module.of(object), timeout) catch |err| {
        core.sys.close(copy);
        return err;
    };
    suspension.watched = copy;
    suspension.what = what;
    return capi.bytes_from("");
}

// ---- resume ------------------------------------------------------------------------------------

fn call_resume(object: *Object, arguments: *Object, _: ?*Object) callconv(.c) ?*Object {
    if (capi.PyTuple_Size(arguments) != 0) {
        capi.PyErr_SetString(capi.PyExc_TypeError, "resume takes no arguments");
        return null;
    }
    const self = of(object);
    self.server.resume_suspended(self.suspension);
    return capi.none();
}

fn dealloc(object: *Object) callconv(.c) void {
    of(object).suspension.release(std.heap.c_allocator);
    capi.deallocate(object);
}

pub const suspend_definition = capi.fast_method(
    "suspend",
    suspend_call,
    "suspend([timeout_ms]) -> resume: parks the response at the next empty string that it yields",
);

pub const readable_definition = capi.fast_method(
    "readable",
    readable,
    "readable(fd[, timeout]) -> b'': parks the response until fd is readable, when yielded",
);

pub const writable_definition = capi.fast_method(
    "writable",
    writable,
    "writable(fd[, timeout]) -> b'': parks the response until fd is writable, when yielded",
);

const slots = [_]capi.Slot{
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.tp_call, @ptrCast(&call_resume)),
    capi.slot(capi.tp_doc, "resume(): lets the suspended response go on; any thread, once"),
    capi.slot_end,
};

const spec: capi.Spec = .{
    .name = "serve_zig._core.Resume",
    .basicsize = @sizeOf(Resume),
    .flags = capi.type_no_instances,
    .slots = &slots,
};
