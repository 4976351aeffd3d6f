//! One call of the application as Python sees it: `start_response`, the `write` that it returns
//! (PEP 3333, "The start_response() Callable"), and the callables in the environ.
//!
//! The objects belong to a worker and serve request after request, as long as no application keeps
//! one; a kept one is cut off from the worker and raises. GIL held.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const suspend_module = @import("suspend.zig");
const Object = capi.Object;
const Crew = core.server.Crew;
const Reply = core.reply.Reply;

pub const Call = extern struct {
    head: Object,
    /// The worker; null when the request is over.
    crew: ?*Crew,
    /// What start_response returns; borrowed from the same `Handles`.
    write: ?*Object,
    /// A `write` is in progress, or the worker itself sends, perhaps waiting for the client
    /// without the GIL: nobody else may send.
    busy: bool,
    /// The response waits for its client, so there is no worker but there is a request.
    is_parked: bool,
    /// The last suspension ended by its time. This object is `x-wsgiorg.fdevent.timeout`, and this
    /// is its truth value.
    timed_out: bool,
    /// Begins with the next empty string; a reference.
    suspension: ?*core.suspension.Suspension,
};

var type_object: ?*capi.Type = null;

pub fn init_type() capi.Error!void {
    type_object = capi.PyType_FromSpec(&spec) orelse return error.Raised;
}

/// What a worker keeps for its calls.
pub const Handles = struct {
    call: *Call,
    start_response: *Object,
    write: *Object,
    early_hints: *Object,
    client_disconnected: *Object,
    any_thread: *Object,
    suspend_response: *Object,
    readable: *Object,
    writable: *Object,
    step: *Object,

    /// How many of them are bound to the call.
    const bound_count = 9;

    /// `step_definition` is what runs inside the request's context.
    pub fn create(step_definition: *const capi.MethodDef) capi.Error!*Handles {
        const self = std.heap.c_allocator.create(Handles) catch {
            _ = capi.PyErr_NoMemory();
            return error.Raised;
        };
        const call = try capi.allocate(Call, type_object.?);
        call.crew = null;
        call.busy = false;
        call.is_parked = false;
        call.timed_out = false;
        call.suspension = null;
        const writer = try bound(call, &write_definition);
        call.write = writer;
        self.* = .{
            .call = call,
            .start_response = try bound(call, &start_definition),
            .write = writer,
            .early_hints = try bound(call, &hints_definition),
            .client_disconnected = try bound(call, &disconnected_definition),
            .any_thread = try bound(call, &any_thread_definition),
            .suspend_response = try bound(call, &suspend_module.suspend_definition),
            .readable = try bound(call, &suspend_module.readable_definition),
            .writable = try bound(call, &suspend_module.writable_definition),
            .step = try bound(call, step_definition),
        };
        return self;
    }

    /// Out of memory at a worker's first request leaks what was made before; nothing else fails.
    fn bound(call: *Call, definition: *const capi.MethodDef) capi.Error!*Object {
        return capi.owned(capi.PyCFunction_NewEx(definition, &call.head, null));
    }

    pub fn drop(self: *Handles) void {
        capi.drop(self.start_response);
        capi.drop(self.write);
        capi.drop(self.early_hints);
        capi.drop(self.client_disconnected);
        capi.drop(self.any_thread);
        capi.drop(self.suspend_response);
        capi.drop(self.readable);
        capi.drop(self.writable);
        capi.drop(self.step);
        capi.drop(&self.call.head);
        std.heap.c_allocator.destroy(self);
    }

    /// Whether the application has kept something of this request's. `holders` dicts of the server
    /// hold the callables that are in the environ.
    pub fn are_kept(self: *const Handles, holders: usize) bool {
        if (capi.is_shared(self.start_response) or capi.is_shared(self.write)) return true;
        const callables = [_]*const Object{
            self.early_hints,
            self.client_disconnected,
            self.any_thread,
            self.suspend_response,
            self.readable,
            self.writable,
        };
        // The call is in the environ too, and each callable and the step hold it. None of them has
        // fewer holders, so one comparison is enough.
        var found = capi.holders_of(&self.call.head);
        for (callables) |callable| found +%= capi.holders_of(callable);
        const of_call = 1 + bound_count + holders;
        return found > of_call + callables.len * (holders + 1);
    }

    /// The request is over. A thread that is still writing has to let go first.
    pub fn close_for_good(self: *Handles) void {
        while (self.call.busy) {
            if (self.call.crew) |crew| core.sys.shutdown_both(crew.connection.fd);
            const state = capi.PyEval_SaveThread();
            core.sys.sleep_ms(1);
            capi.PyEval_RestoreThread(state);
        }
        self.call.crew = null;
    }
};

pub fn of(object: ?*Object) *Call {
    return @ptrCast(@alignCast(object.?));
}

/// Nothing here may touch a descriptor in a process that the application forked.
pub fn raise_in_child() capi.Error {
    return capi.raise(
        capi.PyExc_RuntimeError,
        "this process was forked from the server's, which alone can answer the client",
    );
}

fn crew_of(object: ?*Object) capi.Error!*Crew {
    const call = of(object);
    if (call.crew) |crew| return crew;
    const message = if (call.is_parked)
        "a callable of the request was called while its response was parked: no thread runs it then"
    else
        "start_response or write was called after its request had ended";
    return capi.raise(capi.PyExc_RuntimeError, message);
}

// ---- start_response ----------------------------------------------------------------------------

fn start_response(
    object: ?*Object,
    arguments: [*]const *Object,
    count: capi.ssize,
) callconv(.c) ?*Object {
    return start(object, arguments[0..@intCast(count)]) catch null;
}

fn start(object: ?*Object, arguments: []const *Object) capi.Error!*Object {
    if (arguments.len < 2 or arguments.len > 3) return capi.raise(
        capi.PyExc_TypeError,
        "start_response takes status, headers and, at most, exc_info",
    );
    const list = try field_list(arguments[1]);
    defer capi.drop(list);
    // Only now: making the list may have outlasted the request.
    const crew = try crew_of(object);
    const reply = &crew.reply;
    const exc_info: ?*Object = if (arguments.len == 3 and !capi.is_none(arguments[2]))
        arguments[2]
    else
        null;
    if (exc_info) |info| {
        const is_late = reply.progress.head_sent;
        try check_exc_info(info, is_late);
        // Too late to change the response: the error goes on (PEP 3333, "Error Handling").
        if (is_late) return reraise(info);
    } else if (reply.progress.started) return capi.raise(
        capi.PyExc_AssertionError,
        "start_response was called a second time without exc_info (PEP 3333)",
    );
    try set_head(reply, arguments[0], list);
    crew.server.note_dropped(&reply.head);
    return capi.new(of(object).write.?);
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

/// Nothing from here on runs code of the application.
fn set_head(reply: *Reply, status: *Object, list: *Object) capi.Error!void {
    if (reply.progress.head_sent) return capi.raise(
        capi.PyExc_AssertionError,
        "start_response was called after the head of the response had been sent",
    );
    const text = try native_string(status, "the status is not a str");
    defer text.deinit();
    errdefer reply.progress.started = false;
    reply.start(text.text) catch |err| return raise_field_error(err, "", text.text);
    reply.progress.is_superseded = reply.exchange.record.body_error != null;
    return add_all(&reply.head, list);
}

fn add_all(head: *core.response_head.ResponseHead, list: *Object) capi.Error!void {
    var index: capi.ssize = 0;
    while (index < capi.PyList_Size(list)) : (index += 1) {
        const pair = capi.PyList_GetItem(list, index) orelse return error.Raised;
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

/// Runs no code of the application's, not even for the message.
fn field_value(name: []const u8, object: *Object) capi.Error!capi.Latin1 {
    var storage: [100]u8 = undefined;
    const shown = std.fmt.bufPrintZ(&storage, "{s}", .{name[0..@min(name.len, 80)]}) catch "";
    if (capi.is_string(object)) return capi.Latin1.of(object) catch |err| {
        if (capi.PyErr_ExceptionMatches(capi.PyExc_UnicodeError) == 0) return err;
        capi.PyErr_Clear();
        _ = capi.PyErr_Format(
            capi.PyExc_ValueError,
            "response field %.100s: \"%.100U\" is not Latin-1 (PEP 3333, Unicode Issues); " ++
                "encode it, for instance as RFC 8187 has it",
            shown.ptr,
            object,
        );
        return error.Raised;
    };
    const of_type = try capi.owned(capi.PyType_GetName(object.type));
    defer capi.drop(of_type);
    _ = capi.PyErr_Format(
        capi.PyExc_TypeError,
        "response field %.100s: the value is of type %U; PEP 3333 wants a str",
        shown.ptr,
        of_type,
    );
    return error.Raised;
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

fn write(object: ?*Object, data: ?*Object) callconv(.c) ?*Object {
    write_once(object, data.?) catch return null;
    return capi.none();
}

fn write_once(object: ?*Object, data: *Object) capi.Error!void {
    const crew = try crew_of(object);
    const call = of(object);
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
    defer call.busy = false;
    crew.reply.write(bytes, null) catch |err| return raise_write_error(err);
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

/// `environ["wsgi.early_hints"](fields)`: 103 (Early Hints), as gunicorn's. Nothing happens where
/// the client could not understand it.
fn early_hints(object: ?*Object, fields: ?*Object) callconv(.c) ?*Object {
    send_early_hints(object, fields.?) catch return null;
    return capi.none();
}

fn send_early_hints(object: ?*Object, fields: *Object) capi.Error!void {
    const list = try field_list(fields);
    defer capi.drop(list);
    // Only now: making the list may have outlasted the request.
    const crew = try crew_of(object);
    const reply = &crew.reply;
    const call = of(object);
    if (core.forks.is_child() or !reply.takes_interim() or call.busy) return;
    reply.interim.begin_early_hints() catch |err| return raise_head_error(err);
    try add_all(&reply.interim, list);
    call.busy = true;
    defer call.busy = false;
    reply.send_early_hints() catch |err| return raise_write_error(err);
}

/// `environ["serve_zig.client_disconnected"]()`: whether nobody waits for the answer any more.
fn client_disconnected(object: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    if (core.forks.is_child()) return capi.boolean(true);
    const crew = of(object).crew orelse return capi.boolean(!of(object).is_parked);
    const has_answer = crew.server.limits_calls() and crew.call.is_taken();
    return capi.boolean(has_answer or crew.reply.progress.broken or
        crew.connection.client_has_gone());
}

/// `environ["serve_zig.any_thread"]()`: the response uses nothing that belongs to a thread, and may
/// go on in any of them when it has been parked or suspended.
fn any_thread(object: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    const crew = crew_of(object) catch return null;
    crew.reply.progress.any_thread = true;
    return capi.none();
}

const any_thread_definition = capi.plain_method(
    "any_thread",
    any_thread,
    "any_thread(): lets the response go on in any thread when it was parked or suspended",
);

const hints_definition = capi.one_method(
    "early_hints",
    early_hints,
    "early_hints(fields): sends 103 (Early Hints) with these fields (RFC 8297)",
);

const disconnected_definition = capi.plain_method(
    "client_disconnected",
    client_disconnected,
    "client_disconnected() -> whether the client has gone",
);

const start_definition = capi.fast_method(
    "start_response",
    start_response,
    "start_response(status, headers[, exc_info]) -> write (PEP 3333)",
);

const write_definition = capi.one_method(
    "write",
    write,
    "write(bytes): sends a piece of the response body (PEP 3333)",
);

fn is_true(object: *Object) callconv(.c) c_int {
    return @intFromBool(of(object).timed_out);
}

// What an application does with `x-wsgiorg.fdevent.timeout` beside asking whether it is true. The
// key's value is this object and not True or False, so that copies of the environ, such as
// middleware makes, tell of each wait as well.

fn truth(object: *Object) *Object {
    return capi.boolean(of(object).timed_out);
}

fn as_index(object: *Object) callconv(.c) ?*Object {
    return capi.PyLong_FromLongLong(@intFromBool(of(object).timed_out));
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const value = truth(object);
    defer capi.drop(value);
    return capi.PyObject_Repr(value);
}

fn compare(object: *Object, other: *Object, operation: c_int) callconv(.c) ?*Object {
    const value = truth(object);
    defer capi.drop(value);
    return capi.PyObject_RichCompare(value, other, operation);
}

fn dealloc(object: *Object) callconv(.c) void {
    capi.deallocate(object);
}

const slots = [_]capi.Slot{
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.nb_bool, @ptrCast(&is_true)),
    capi.slot(capi.nb_index, @ptrCast(&as_index)),
    capi.slot(capi.tp_repr, @ptrCast(&repr)),
    capi.slot(capi.tp_richcompare, @ptrCast(&compare)),
    capi.slot(capi.tp_doc, "One call of the application; true after a wait that timed out"),
    capi.slot_end,
};

const spec: capi.Spec = .{
    .name = "serve_zig._core.Call",
    .basicsize = @sizeOf(Call),
    .flags = capi.type_no_instances,
    .slots = &slots,
};
