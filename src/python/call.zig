//! What an application may call during its request: `start_response`, the `write` that it returns
//! (PEP 3333, "The start_response() Callable"), and the callables in the environ.
//!
//! Python code may run wherever an exception is made, an object of the garbage collector is made or
//! the last reference to something is dropped: the collector runs finalizers there (on CPython 3.11
//! at any such allocation), which may call any of these functions, change every list, and let other
//! threads go on, under which the request may end. So a function asks whose request it is when it
//! has its arguments, and from there on runs no Python code until it is done with the reply, or
//! raises and touches the reply no more. GIL held.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const arguments = @import("arguments.zig");
const handles = @import("handles.zig");
const Object = capi.Object;
const Crew = core.server.Crew;
const Reply = core.reply.Reply;
const Call = handles.Call;

/// Nothing here may touch a descriptor in a process that the application forked.
pub fn raise_in_child() capi.Error {
    return capi.raise(
        capi.PyExc_RuntimeError,
        "this process was forked from the server's, which alone can answer the client",
    );
}

fn crew_of(call: *const Call) capi.Error!*Crew {
    if (call.crew) |crew| return crew;
    const message = if (call.is_parked)
        "a callable of the request was called while its response was parked: no thread runs it then"
    else
        "start_response or write was called after its request had ended";
    return capi.raise(capi.PyExc_RuntimeError, message);
}

// ---- start_response ----------------------------------------------------------------------------

const start_signature: arguments.Signature = .{
    .function = "start_response",
    .parameters = &.{ "status", "headers", "exc_info" },
    .required = 2,
};

fn start_response(
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    const given = arguments.bind(start_signature, values, count, names) catch return null;
    return start(handles.of(callable).call, given[0].?, given[1].?, given[2]) catch null;
}

fn start(
    call: *Call,
    status: *Object,
    headers: *Object,
    given_exc_info: ?*Object,
) capi.Error!*Object {
    const list = try field_list(headers);
    defer capi.drop(list);
    // Only now: making the list may have outlasted the request.
    const crew = try crew_of(call);
    const reply = &crew.reply;
    const exc_info = if (given_exc_info) |info| (if (capi.is_none(info)) null else info) else null;
    if (exc_info) |info| {
        const is_late = reply.progress.head_sent;
        try check_exc_info(info, is_late);
        // Too late to change the response: the error goes on (PEP 3333, "Error Handling").
        if (is_late) return reraise(info);
    } else if (reply.progress.started) return capi.raise(
        capi.PyExc_AssertionError,
        "start_response was called a second time without exc_info (PEP 3333)",
    );
    try set_head(reply, status, list);
    crew.server.note_dropped(&reply.head);
    return capi.new(call.object(.write));
}

/// Only an exception can be raised: CPython does not ask, and ends the process with anything else.
/// What sys.exc_info() returns outside of an except clause holds none; as with other servers it
/// replaces a head that was not sent.
fn check_exc_info(info: *Object, is_late: bool) capi.Error!void {
    if (capi.is_tuple(info) and capi.PyTuple_Size(info) == 3) {
        const kind = capi.PyTuple_GetItem(info, 0) orelse return error.Raised;
        const value = capi.PyTuple_GetItem(info, 1) orelse return error.Raised;
        const traceback = capi.PyTuple_GetItem(info, 2) orelse return error.Raised;
        const has_trace = capi.is_exact(traceback, &capi.PyTraceBack_Type);
        const has_none = capi.is_none(traceback);
        if (capi.is_exception(value) and (has_trace or has_none)) return;
        if (capi.is_none(kind) and capi.is_none(value) and has_none and !is_late) return;
    }
    return capi.raise(
        capi.PyExc_TypeError,
        "exc_info is not what sys.exc_info() returns within an except clause",
    );
}

fn reraise(info: *Object) capi.Error {
    const exception = capi.PyTuple_GetItem(info, 1) orelse return error.Raised;
    const traceback = capi.PyTuple_GetItem(info, 2) orelse return error.Raised;
    const kind: *Object = @ptrCast(@alignCast(exception.type));
    const trace: ?*Object = if (capi.is_none(traceback)) null else capi.new(traceback);
    capi.PyErr_Restore(capi.new(kind), capi.new(exception), trace);
    return error.Raised;
}

/// A list of the fields; a new reference. PEP 3333 wants a list; other iterables have always been
/// let pass. Making one runs the application's code, which may call any of these functions.
fn field_list(headers: *Object) capi.Error!*Object {
    if (capi.is_list(headers)) return capi.new(headers);
    return capi.owned(capi.PySequence_List(headers));
}

/// Until the whole head is there the response has none, so that a refused one needs no undoing:
/// by then the reply may be another request's.
fn set_head(reply: *Reply, status: *Object, list: *Object) capi.Error!void {
    if (reply.progress.head_sent) return capi.raise(
        capi.PyExc_AssertionError,
        "start_response was called after the head of the response had been sent",
    );
    const text = try native_string(status, "the status is not a str");
    defer text.deinit();
    reply.prepare(text.text) catch |err| return raise_field_error(err, "", text.text);
    try add_all(&reply.head, list);
    reply.progress.is_superseded = reply.exchange.record.body_error != null;
    reply.progress.started = true;
}

/// Runs Python code only where it raises. The list may be changed then, and what it held be freed.
fn add_all(head: *core.response_head.ResponseHead, list: *Object) capi.Error!void {
    var index: capi.ssize = 0;
    while (index < capi.PyList_Size(list)) : (index += 1) {
        const pair = capi.new(capi.PyList_GetItem(list, index) orelse return error.Raised);
        defer capi.drop(pair);
        if (!capi.is_tuple(pair) or capi.PyTuple_Size(pair) != 2) return capi.raise(
            capi.PyExc_TypeError,
            "each response field is a tuple of name and value (PEP 3333)",
        );
        const name = try native_string(
            capi.PyTuple_GetItem(pair, 0) orelse return error.Raised,
            "the name of a response field is not a str",
        );
        defer name.deinit();
        const value = try field_value(
            name.text,
            capi.PyTuple_GetItem(pair, 1) orelse return error.Raised,
        );
        defer value.deinit();
        head.add(name.text, value.text) catch |err| {
            return raise_field_error(err, name.text, value.text);
        };
    }
}

/// Runs Python code only where it raises; the caller holds the field meanwhile.
fn field_value(name: []const u8, object: *Object) capi.Error!capi.Latin1 {
    if (!capi.is_string(object)) return raise_value_type(name, object);
    return capi.Latin1.of(object) catch |err| {
        if (capi.PyErr_ExceptionMatches(capi.PyExc_UnicodeError) == 0) return err;
        return raise_not_latin1(name, object);
    };
}

/// In place of the UnicodeError that is set.
fn raise_not_latin1(name: []const u8, value: *Object) capi.Error {
    capi.PyErr_Clear();
    var storage: [shown_name_bytes]u8 = undefined;
    _ = capi.PyErr_Format(
        capi.PyExc_ValueError,
        "response field %s: \"%.100U\" is not Latin-1 (PEP 3333, Unicode Issues); " ++
            "encode it, for instance as RFC 8187 has it",
        shown_name(&storage, name).ptr,
        value,
    );
    return error.Raised;
}

fn raise_value_type(name: []const u8, value: *Object) capi.Error {
    const of_type = try capi.owned(capi.PyType_GetName(value.type));
    defer capi.drop(of_type);
    var storage: [shown_name_bytes]u8 = undefined;
    _ = capi.PyErr_Format(
        capi.PyExc_TypeError,
        "response field %s: the value is of type %U; PEP 3333 wants a str",
        shown_name(&storage, name).ptr,
        of_type,
    );
    return error.Raised;
}

/// The longest part of a field's name that an error shows, with the zero that ends it.
const shown_name_bytes = 81;

fn shown_name(storage: *[shown_name_bytes]u8, name: []const u8) [:0]const u8 {
    const length = @min(name.len, storage.len - 1);
    @memcpy(storage[0..length], name[0..length]);
    storage[length] = 0;
    return storage[0..length :0];
}

fn native_string(object: *Object, message: [*:0]const u8) capi.Error!capi.Latin1 {
    if (!capi.is_string(object)) return capi.raise(capi.PyExc_TypeError, message);
    return capi.Latin1.of(object);
}

/// `name` is empty for the status.
fn raise_field_error(
    err: core.response_head.Error,
    name: []const u8,
    value: []const u8,
) capi.Error {
    if (err == error.OutOfMemory) return raise_head_error(err);
    var buffer: [core.response_head.explanation_bytes_max]u8 = undefined;
    const text = core.response_head.explain(&buffer, err, name, value);
    return capi.raise(capi.PyExc_ValueError, text.ptr);
}

fn raise_head_error(err: core.response_head.Error) capi.Error {
    if (err == error.OutOfMemory) {
        _ = capi.PyErr_NoMemory();
        return error.Raised;
    }
    return capi.raise(capi.PyExc_ValueError, core.response_head.describe(err).ptr);
}

// ---- write -------------------------------------------------------------------------------------

const write_signature: arguments.Signature = .{
    .function = "write",
    .parameters = &.{"data"},
    .required = 1,
};

fn write(
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    const given = arguments.bind(write_signature, values, count, names) catch return null;
    write_once(handles.of(callable).call, given[0].?) catch return null;
    return capi.none();
}

fn write_once(call: *Call, data: *Object) capi.Error!void {
    const crew = try crew_of(call);
    if (core.forks.is_child()) return raise_in_child();
    if (!capi.is_bytes(data)) return capi.raise(
        capi.PyExc_TypeError,
        "write takes bytes (PEP 3333)",
    );
    if (call.busy) return capi.raise(
        capi.PyExc_RuntimeError,
        "the response is being sent by another thread",
    );
    if (!crew.reply.progress.started) return capi.raise(
        capi.PyExc_AssertionError,
        "write was called before start_response",
    );
    if (crew.reply.progress.finished) return capi.raise(
        capi.PyExc_RuntimeError,
        "write was called after the response had ended",
    );
    const bytes = capi.bytes_of(data);
    if (bytes.len == 0) return;
    call.busy = true;
    const result = crew.reply.write(bytes, null);
    // Before anything is raised, which may take as long as a finalizer does.
    call.busy = false;
    result catch |err| return raise_write_error(err);
}

fn raise_write_error(err: core.reply.WriteError) capi.Error {
    return switch (err) {
        error.ClientGone => capi.raise(
            capi.PyExc_ConnectionResetError,
            "the client closed the connection before the end of the response",
        ),
        error.BodyTooLong => capi.raise(
            capi.PyExc_ValueError,
            "the response body is longer than its Content-Length",
        ),
        error.Superseded => capi.raise(
            capi.PyExc_OSError,
            "the request body could not be read to its end, which the server answers itself",
        ),
        else => |head_error| raise_head_error(head_error),
    };
}

// ---- Callables in the environ ------------------------------------------------------------------

const hints_signature: arguments.Signature = .{
    .function = "early_hints",
    .parameters = &.{"headers"},
    .required = 1,
};

/// `environ["wsgi.early_hints"](headers)`: 103 (Early Hints), as gunicorn's. Nothing happens where
/// the client could not understand it.
fn early_hints(
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    const given = arguments.bind(hints_signature, values, count, names) catch return null;
    send_early_hints(handles.of(callable).call, given[0].?) catch return null;
    return capi.none();
}

fn send_early_hints(call: *Call, headers: *Object) capi.Error!void {
    const list = try field_list(headers);
    defer capi.drop(list);
    // Only now: making the list may have outlasted the request.
    const crew = try crew_of(call);
    const reply = &crew.reply;
    if (core.forks.is_child() or !reply.takes_interim() or call.busy) return;
    reply.interim.begin_early_hints() catch |err| return raise_head_error(err);
    try add_all(&reply.interim, list);
    call.busy = true;
    const result = reply.send_early_hints();
    call.busy = false;
    result catch |err| return raise_write_error(err);
}

const disconnected_signature: arguments.Signature = .{
    .function = "client_disconnected",
    .parameters = &.{},
    .required = 0,
};

/// `environ["serve_zig.client_disconnected"]()`: whether nobody waits for the answer any more.
fn client_disconnected(
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    _ = arguments.bind(disconnected_signature, values, count, names) catch return null;
    if (core.forks.is_child()) return capi.boolean(true);
    const call = handles.of(callable).call;
    const crew = call.crew orelse return capi.boolean(!call.is_parked);
    const has_answer = crew.server.limits_calls() and crew.call.is_taken();
    return capi.boolean(has_answer or crew.reply.progress.broken or
        crew.connection.client_has_gone());
}

const any_thread_signature: arguments.Signature = .{
    .function = "any_thread",
    .parameters = &.{},
    .required = 0,
};

/// `environ["serve_zig.any_thread"]()`: the response uses nothing that belongs to a thread, and may
/// go on in any of them when it has been parked or suspended.
fn any_thread(
    callable: *Object,
    values: [*]const *Object,
    flagged: usize,
    names: ?*Object,
) callconv(.c) ?*Object {
    const count = capi.positional_count(flagged);
    _ = arguments.bind(any_thread_signature, values, count, names) catch return null;
    const crew = crew_of(handles.of(callable).call) catch return null;
    crew.reply.progress.any_thread = true;
    return capi.none();
}

pub const any_thread_function: handles.Function = .{
    .name = "any_thread",
    .doc = "any_thread(): lets the response go on in any thread when it was parked or suspended",
    .vectorcall = any_thread,
};

pub const start_function: handles.Function = .{
    .name = "start_response",
    .doc = "start_response(status, headers, exc_info=None) -> write (PEP 3333)",
    .vectorcall = start_response,
};

pub const write_function: handles.Function = .{
    .name = "write",
    .doc = "write(data): sends a piece of the response body, which is bytes (PEP 3333)",
    .vectorcall = write,
};

pub const hints_function: handles.Function = .{
    .name = "early_hints",
    .doc = "early_hints(headers): sends 103 (Early Hints) with these fields (RFC 8297)",
    .vectorcall = early_hints,
};

pub const disconnected_function: handles.Function = .{
    .name = "client_disconnected",
    .doc = "client_disconnected() -> whether the client has gone",
    .vectorcall = client_disconnected,
};
