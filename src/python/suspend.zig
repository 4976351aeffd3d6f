//! `x-wsgiorg.suspend` and `x-wsgiorg.fdevent.*`: a response waits for an event of the application
//! without holding a thread (the two specifications of the Python Web-SIG).
//!
//! Each callable makes a `Suspension`, which takes effect when the application yields an empty
//! string next. `resume` is an object of its own, since any thread may call it at any time, long
//! after the request too. GIL held.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const arguments = @import("arguments.zig");
const call_module = @import("call.zig");
const handles = @import("handles.zig");
const Object = capi.Object;
const Call = handles.Call;
const Server = core.server.Server;
const Suspension = core.suspension.Suspension;

/// What `suspend` returns.
const Resume = extern struct {
    head: Object,
    weak_references: ?*Object,
    server: *Server,
    /// A reference; null only before `suspend` has returned this.
    suspension: ?*Suspension,
};

var type_object: ?*capi.Type = null;

pub fn init_type() capi.Error!void {
    type_object = capi.PyType_FromSpec(&spec) orelse return error.Raised;
}

fn of(object: *Object) *Resume {
    return @ptrCast(@alignCast(object));
}

// ---- suspend -----------------------------------------------------------------------------------

const suspend_signature: arguments.Signature = .{
    .function = "suspend",
    .parameters = &.{"timeout"},
    .required = 0,
};

fn suspend_call(
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    const given = arguments.bind(suspend_signature, values, count, names) catch return null;
    return begin(handles.of(callable).call, given[0]) catch null;
}

fn begin(call: *Call, given_timeout: ?*Object) capi.Error!*Object {
    const timeout = if (given_timeout) |object| try timeout_ms(object, 1) else null;
    // First, so that no response waits for what its application could not be given.
    const resumer = try capi.allocate(Resume, type_object.?);
    errdefer capi.drop(&resumer.head);
    const suspension = try arm(call, timeout);
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
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    const given = arguments.bind(watch_signature("readable"), values, count, names) catch
        return null;
    return watch(handles.of(callable).call, given[0].?, given[1], .readable) catch null;
}

fn writable(
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    const given = arguments.bind(watch_signature("writable"), values, count, names) catch
        return null;
    return watch(handles.of(callable).call, given[0].?, given[1], .writable) catch null;
}

fn watch_signature(comptime function: []const u8) arguments.Signature {
    return .{ .function = function, .parameters = &.{ "fd", "timeout" }, .required = 1 };
}

/// Returns the empty string that has to be yielded.
fn watch(
    call: *Call,
    descriptor: *Object,
    given_timeout: ?*Object,
    what: core.sys.WaitFor,
) capi.Error!*Object {
    const timeout = if (given_timeout) |object| try timeout_ms(object, 1000) else null;
    const fd = capi.PyObject_AsFileDescriptor(descriptor);
    if (fd < 0) return error.Raised;
    // The application may close its own, or wait for it in another response too.
    const copy = core.sys.duplicate(fd) orelse return capi.raise(
        capi.PyExc_OSError,
        "the descriptor is not open, or the process has no more descriptors",
    );
    const suspension = arm(call, timeout) catch |err| {
        core.sys.close(copy);
        return err;
    };
    suspension.watched = copy;
    suspension.what = what;
    return capi.bytes_from("");
}

// ---- resume ------------------------------------------------------------------------------------

fn call_resume(object: *Object, given: *Object, named: ?*Object) callconv(.c) ?*Object {
    const is_named = if (named) |dict| capi.PyDict_Size(dict) > 0 else false;
    if (is_named or capi.PyTuple_Size(given) != 0) {
        capi.PyErr_SetString(capi.PyExc_TypeError, "resume() takes no arguments");
        return null;
    }
    const self = of(object);
    if (self.suspension) |suspension| self.server.resume_suspended(suspension);
    return capi.none();
}

fn repr(object: *Object) callconv(.c) ?*Object {
    return capi.PyUnicode_FromFormat("<serve_zig resume at %p>", object);
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    if (self.weak_references != null) capi.PyObject_ClearWeakRefs(object);
    if (self.suspension) |suspension| suspension.release(std.heap.c_allocator);
    capi.deallocate(object);
}

pub const suspend_function: handles.Function = .{
    .name = "suspend",
    .doc = "suspend(timeout=None) -> resume: parks the response at the next empty string that " ++
        "it yields; timeout in milliseconds",
    .vectorcall = suspend_call,
};

pub const readable_function: handles.Function = .{
    .name = "readable",
    .doc = "readable(fd, timeout=None) -> b'': parks the response until fd is readable, when " ++
        "yielded; timeout in seconds",
    .vectorcall = readable,
};

pub const writable_function: handles.Function = .{
    .name = "writable",
    .doc = "writable(fd, timeout=None) -> b'': parks the response until fd is writable, when " ++
        "yielded; timeout in seconds",
    .vectorcall = writable,
};

const methods = [_]capi.MethodDef{
    capi.copied_as_itself[0],
    capi.copied_as_itself[1],
    capi.not_pickled,
    .{},
};

const members = capi.weak_references_at(@offsetOf(Resume, "weak_references"));

const slots = [_]capi.Slot{
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.tp_call, @ptrCast(&call_resume)),
    capi.slot(capi.tp_repr, @ptrCast(&repr)),
    capi.slot(capi.tp_methods, @ptrCast(&methods)),
    capi.slot(capi.tp_members, @ptrCast(&members)),
    capi.slot(capi.tp_doc, "resume(): lets the suspended response go on; any thread, once"),
    capi.slot_end,
};

const spec: capi.Spec = .{
    .name = "serve_zig._core.Resume",
    .basicsize = @sizeOf(Resume),
    .flags = capi.type_no_instances | capi.type_immutable,
    .slots = &slots,
};
