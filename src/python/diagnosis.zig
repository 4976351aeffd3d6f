//! What the server is doing, for the launcher to log: requests in flight, overdue calls.
//!
//! GIL held. The core's records are copied before Python objects are made of them.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const application_module = @import("application.zig");
const server_object = @import("server_object.zig");
const Object = capi.Object;
const RequestInfo = core.in_flight.RequestInfo;

const requests_max = 4096;

/// A list of dicts, one for each request in flight.
pub fn requests(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_object.server_of(handle);
    const buffer = core.pages.alloc(RequestInfo, requests_max) catch {
        _ = capi.PyErr_NoMemory();
        return error.Raised;
    };
    defer core.pages.free(buffer);
    const list = try capi.owned(capi.PyList_New(0));
    errdefer capi.drop(list);
    for (buffer[0..server.snapshot_requests(buffer)]) |*request| {
        const described = try describe(request);
        defer capi.drop(described);
        try capi.checked(capi.PyList_Append(list, described));
    }
    return list;
}

fn describe(request: *const RequestInfo) capi.Error!*Object {
    const dict = try capi.owned(capi.PyDict_New());
    errdefer capi.drop(dict);
    try set(dict, "method", try capi.latin1(request.method.slice()));
    try set(dict, "target", try capi.latin1(request.target.slice()));
    try set(dict, "client", try capi.latin1(request.client.slice()));
    try set(dict, "request_id", try capi.latin1(request.request_id.slice()));
    try set(dict, "phase", try capi.latin1(@tagName(request.phase)));
    try set(dict, "age", try seconds(request.age_ns));
    const thread = if (request.thread) |number|
        try capi.owned(capi.PyLong_FromLongLong(number))
    else
        capi.none();
    try set(dict, "thread", thread);
    return dict;
}

/// Uses the value's reference up.
fn set(dict: *Object, name: [*:0]const u8, value: *Object) capi.Error!void {
    defer capi.drop(value);
    try capi.checked(capi.PyDict_SetItemString(dict, name, value));
}

fn seconds(duration_ns: u64) capi.Error!*Object {
    const value = @as(f64, @floatFromInt(duration_ns)) / std.time.ns_per_s;
    return capi.owned(capi.PyFloat_FromDouble(value));
}

/// The oldest overdue call that was not taken yet, as the dict of its request with `waited`,
/// `call` and `answered`; None when there is none.
pub fn take_overdue(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_object.server_of(handle);
    const report = server.overdue.take() orelse return capi.none();
    const dict = try describe(&report.request);
    errdefer capi.drop(dict);
    try set(dict, "thread", try capi.owned(capi.PyLong_FromLongLong(report.worker)));
    try set(dict, "call", try capi.owned(capi.PyLong_FromLongLong(@intCast(report.call))));
    try set(dict, "waited", try seconds(report.waited_ms * std.time.ns_per_ms));
    try set(dict, "answered", capi.boolean(report.answered));
    return dict;
}

/// Whether the worker is still in this call: what was found of its thread since a time at which it
/// was as well belongs to the call. With the GIL, which may have changed hands in between.
pub fn is_in_call(handle: ?*anyopaque, thread: *Object, call: *Object) capi.Error!*Object {
    const server = try server_object.server_of(handle);
    const number = try server_object.read_integer(u32, thread, "thread");
    const call_number = try server_object.read_integer(u64, call, "call");
    if (number >= server.crews.len) return capi.boolean(false);
    return capi.boolean(server.crews[number].call.is_running(call_number));
}

/// Raises the exception in the worker's thread if that is still in this call.
pub fn interrupt(
    handle: ?*anyopaque,
    thread: *Object,
    call: *Object,
    exception: *Object,
) capi.Error!*Object {
    const server = try server_object.server_of(handle);
    const number = try server_object.read_integer(u32, thread, "thread");
    const call_number = try server_object.read_integer(u64, call, "call");
    const bridge = application_module.Bridge.of(server.application.context);
    return capi.boolean(bridge.interrupt(number, call_number, exception));
}
