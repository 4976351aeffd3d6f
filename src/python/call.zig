//! One call of the application as Python sees it: `start_response` and the `write` that it returns
//! (PEP 3333, "The start_response() Callable").
//!
//! The objects belong to a worker and serve request after request, as long as no application keeps
//! one; a kept one is cut off from the worker and raises. GIL held.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const Object = capi.Object;
const Crew = core.server.Crew;
const Reply = core.reply.Reply;

pub const Call = extern struct {
    head: Object,
    /// The worker; null when the request is over.
    crew: ?*Crew,
    /// A `write` is in progress, perhaps waiting for the client without the GIL.
    busy: bool,
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
    step: *Object,

    /// `step_definition` is what runs inside the request's context.
    pub fn create(step_definition: *const capi.MethodDef) capi.Error!Handles {
        const call = try capi.allocate(Call, type_object.?);
        call.crew = null;
        call.busy = false;
        errdefer capi.drop(&call.head);
        const own = &call.head;
        const starter = try capi.owned(capi.PyCFunction_NewEx(&start_definition, own, null));
        errdefer capi.drop(starter);
        const writer = try capi.owned(capi.PyCFunction_NewEx(&write_definition, own, null));
        errdefer capi.drop(writer);
        const step = try capi.owned(capi.PyCFunction_NewEx(step_definition, own, null));
        return .{ .call = call, .start_response = starter, .write = writer, .step = step };
    }

    pub fn drop(self: Handles) void {
        capi.drop(self.start_response);
        capi.drop(self.write);
        capi.drop(self.step);
        capi.drop(&self.call.head);
    }

    /// Whether the application has kept something of this request's.
    pub fn are_kept(self: Handles) bool {
        return capi.is_shared(self.start_response) or capi.is_shared(self.write);
    }

    /// The request is over. A thread that is still writing has to let go first.
    pub fn close_for_good(self: Handles) void {
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

/// Where `write` is found when start_response returns it; set once by the application module.
pub var handles_of: *const fn (*Crew) *const Handles = undefined;

fn crew_of(object: ?*Object) capi.Error!*Crew {
    return of(object).crew orelse capi.raise(
        capi.PyExc_RuntimeError,
        "start_response or write was called after its request had ended",
    );
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
    const crew = try crew_of(object);
    if (arguments.len < 2 or arguments.len > 3) return capi.raise(
        capi.PyExc_TypeError,
        "start_response takes status, headers and, at most, exc_info",
    );
    const reply = &crew.reply;
    const exc_info: ?*Object = if (arguments.len == 3 and !capi.is_none(arguments[2]))
        arguments[2]
    else
        null;
    if (exc_info) |info| {
        // Too late to change the response: the error goes on (PEP 3333, "Error Handling").
        if (reply.head_sent) return reraise(info);
    } else if (reply.started) return capi.raise(
        capi.PyExc_AssertionError,
        "start_response was called a second time without exc_info (PEP 3333)",
    );
    errdefer reply.started = false;
    try set_head(reply, arguments[0], arguments[1]);
    return capi.new(handles_of(crew).write);
}

fn reraise(info: *Object) capi.Error {
    if (!capi.is_tuple(info) or capi.PyTuple_Size(info) != 3) return capi.raise(
        capi.PyExc_TypeError,
        "exc_info is not a tuple as sys.exc_info() returns it",
    );
    const kind = capi.PyTuple_GetItem(info, 0) orelse return error.Raised;
    const value = capi.PyTuple_GetItem(info, 1) orelse return error.Raised;
    const traceback = capi.PyTuple_GetItem(info, 2) orelse return error.Raised;
    const trace: ?*Object = if (capi.is_none(traceback)) null else capi.new(traceback);
    capi.PyErr_Restore(capi.new(kind), capi.new(value), trace);
    return error.Raised;
}

fn set_head(reply: *Reply, status: *Object, headers: *Object) capi.Error!void {
    const text = try native_string(status, "the status is not a str");
    defer text.deinit();
    reply.start(text.text) catch |err| return raise_head_error(err);
    if (capi.is_list(headers)) return add_all(reply, headers);
    // PEP 3333 wants a list; other sequences have always been let pass.
    const list = try capi.owned(capi.PySequence_List(headers));
    defer capi.drop(list);
    return add_all(reply, list);
}

fn add_all(reply: *Reply, list: *Object) capi.Error!void {
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
        const value = try native_string(
            capi.PyTuple_GetItem(pair, 1) orelse return error.Raised,
            "the value of a response field is not a str",
        );
        defer value.deinit();
        reply.head.add(name.text, value.text) catch |err| return raise_head_error(err);
    }
}

fn native_string(object: *Object, message: [*:0]const u8) capi.Error!capi.Latin1 {
    if (!capi.is_string(object)) return capi.raise(capi.PyExc_TypeError, message);
    return capi.Latin1.of(object);
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
    if (!capi.is_bytes(data)) return capi.raise(
        capi.PyExc_TypeError,
        "write takes bytes (PEP 3333)",
    );
    if (call.busy) return capi.raise(
        capi.PyExc_RuntimeError,
        "write is being called by another thread",
    );
    if (!crew.reply.started) return capi.raise(
        capi.PyExc_AssertionError,
        "write was called before start_response",
    );
    const bytes = capi.bytes_of(data);
    if (bytes.len == 0) return;
    call.busy = true;
    defer call.busy = false;
    crew.reply.write(bytes, null) catch |err| return switch (err) {
        error.ClientGone => capi.raise(
            capi.PyExc_ConnectionResetError,
            "the client closed the connection before the end of the response",
        ),
        error.BodyTooLong => capi.raise(
            capi.PyExc_ValueError,
            "the response body is longer than its Content-Length",
        ),
        else => |head_error| raise_head_error(head_error),
    };
}

const start_definition = capi.fast_method(
    "start_response",
    start_response,
    "start_response(status, headers[, exc_info]) -> write (PEP 3333)",
);

const write_definition: capi.MethodDef = .{
    .name = "write",
    .function = @ptrCast(&write),
    .flags = capi.method_o,
    .doc = "write(bytes): sends a piece of the response body (PEP 3333)",
};

fn dealloc(object: *Object) callconv(.c) void {
    capi.deallocate(object);
}

const slots = [_]capi.Slot{
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.tp_doc, "One call of the application"),
    capi.slot_end,
};

const spec: capi.Spec = .{
    .name = "serve_zig._core.Call",
    .basicsize = @sizeOf(Call),
    .flags = capi.type_no_instances,
    .slots = &slots,
};
