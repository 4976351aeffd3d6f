//! `wsgi.input` (PEP 3333, "Input and Error Streams"): the request body as a file to read.
//!
//! Owner: the request, in whose `Call` it lies; `close_for_good` cuts it off when that ends, so
//! that a reference which the application keeps reads nothing. GIL held; reading a body that the
//! client still sends waits without it. Another thread of the application may read, also while the
//! response is parked and no worker has it, but not two at once.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const arguments_module = @import("arguments.zig");
const handles = @import("handles.zig");
const Object = capi.Object;
const Connection = core.connection.Connection;
const Crew = core.server.Crew;
const Server = core.server.Server;

pub const InputStream = extern struct {
    head: Object,
    weak_references: ?*Object,
    call: *handles.Call,
    server: *Server,
    /// The request's; null when the request is over.
    connection: ?*Connection,
    /// The request's worker; null while the response is parked, and when the request is over.
    crew: ?*Crew,
    /// What was read beyond the line that was asked for; a new reference to bytes.
    ahead: ?*Object,
    /// How much of `ahead` has been given out.
    ahead_used: usize,
    /// A thread is reading.
    busy: bool,
    /// The request has no body: always at its end, after the request too.
    is_empty: bool,
};

var type_object: ?*capi.Type = null;

pub fn init_type() capi.Error!void {
    type_object = capi.PyType_FromSpec(&spec) orelse return error.Raised;
}

/// Sets up the memory of one, for good.
pub fn prepare(self: *InputStream, call: *handles.Call) void {
    self.head = .{ .refcount = 0, .type = type_object.? };
    self.weak_references = null;
    self.call = call;
}

/// Makes it a new stream, which has nothing to read.
pub fn reset(self: *InputStream) void {
    self.server = undefined; // asked for nothing
    self.connection = null;
    self.crew = null;
    self.ahead = null;
    self.ahead_used = 0;
    self.busy = false;
    self.is_empty = true;
}

/// There is a body; the worker has it.
pub fn open(self: *InputStream, crew: *Crew) void {
    self.server = crew.server;
    self.connection = crew.connection;
    self.crew = crew;
    self.is_empty = false;
}

/// The request is over. A thread that still reads keeps the request until it has let go.
pub fn close_for_good(self: *InputStream) void {
    while (self.busy) {
        // Its wait ends with the connection.
        if (self.connection) |connection| core.sys.shutdown_both(connection.fd);
        const state = capi.PyEval_SaveThread();
        core.sys.sleep_ms(1);
        capi.PyEval_RestoreThread(state);
    }
    self.connection = null;
    self.crew = null;
}

/// The body, as long as there is a request.
fn body_of(self: *const InputStream) ?*core.body.Body {
    const connection = self.connection orelse return null;
    return &connection.exchange.?.body;
}

/// The same, and the server's reference ends.
pub fn finish(self: *InputStream) void {
    close_for_good(self);
    capi.drop_known(&self.head, dealloc);
}

fn of(object: ?*Object) *InputStream {
    return @ptrCast(@alignCast(object.?));
}

fn dealloc(object: *Object) callconv(.c) void {
    const self = of(object);
    if (self.weak_references != null) capi.PyObject_ClearWeakRefs(object);
    capi.drop_maybe(self.ahead);
    self.call.release();
}

// ---- Reading -----------------------------------------------------------------------------------

const block_bytes = 16 * 1024;

/// Raises what a failed read means to the application.
fn raise_read_error(err: core.body.ReadError) capi.Error {
    return switch (err) {
        error.ClientGone => capi.raise(
            capi.PyExc_ConnectionResetError,
            "the client closed the connection before the end of the request body",
        ),
        error.TimedOut => capi.raise(
            capi.PyExc_TimeoutError,
            "the client did not go on with the request body in time (timeouts.body, or the " ++
                "server drains)",
        ),
        error.OutOfMemory => memory_error(),
        error.NoSpace, error.Unexpected => capi.raise(
            capi.PyExc_OSError,
            "the request body could not be read from its temporary file",
        ),
    };
}

/// Whether the application's exception is one that `raise_read_error` may have raised, or was made
/// of one: Python's `raise ... from`, or `raise` in an `except` clause. Other OSErrors count too,
/// since frameworks have their own, such as Django's UnreadablePostError.
pub fn comes_from_failure(exception: *Object, err: ?core.body.ReadError) bool {
    const is_memory = if (err) |failure| failure == error.OutOfMemory else false;
    const raised = if (is_memory) capi.PyExc_MemoryError else capi.PyExc_OSError;
    var current = capi.new(exception);
    defer capi.drop(current);
    // Exceptions can refer to each other in a circle.
    for (0..100) |_| {
        // As `except` has it, which does not ask for a `__class__`.
        if (capi.is_kind_of(current, @ptrCast(@alignCast(raised)))) return true;
        const before = capi.exception_before(current) orelse return false;
        capi.drop(current);
        current = before;
    }
    return false;
}

fn memory_error() capi.Error {
    _ = capi.PyErr_NoMemory();
    return error.Raised;
}

/// Reads once from the body; 0 at its end, and for ever after.
fn read_once(self: *InputStream, destination: []u8) capi.Error!usize {
    if (self.is_empty) return 0;
    const connection = self.connection orelse return capi.raise(
        capi.PyExc_ValueError,
        "wsgi.input was read after its request had ended",
    );
    if (self.busy) return capi.raise(
        capi.PyExc_RuntimeError,
        "wsgi.input is being read by another thread",
    );
    if (core.forks.is_child() and !body_of(self).?.is_in_memory()) return capi.raise(
        capi.PyExc_OSError,
        "this process was forked from the server's, which alone can read the rest of the " ++
            "request body; read it before the fork",
    );
    self.busy = true;
    const result = read_body(self, connection, destination);
    // Before anything is raised, which may take as long as a finalizer does.
    self.busy = false;
    return result catch |err| switch (err) {
        error.NotAsked => capi.raise(
            capi.PyExc_RuntimeError,
            "wsgi.input cannot be read while its response is suspended before its first piece: " ++
                "the client waits for 100 (Continue), which the response's own thread has to send",
        ),
        else => |failure| raise_read_error(failure),
    };
}

fn read_body(
    self: *InputStream,
    connection: *Connection,
    destination: []u8,
) (error{NotAsked} || core.body.ReadError)!usize {
    if (self.crew) |crew| return crew.read_body(destination);
    return self.server.read_parked_body(connection, destination);
}

/// A list of the trailer fields of a chunked body (RFC 9112 7.1.2), each a tuple of name and value;
/// a new reference. Never merged into the environ's fields: they come after decisions were made by
/// those (RFC 9110 6.5.1). A chunked body is complete before the application is called.
pub fn create_trailers(body: *const core.body.Body) capi.Error!*Object {
    const list = try capi.owned(capi.PyList_New(0));
    errdefer capi.drop(list);
    var lines = std.mem.splitSequence(u8, body.trailer_section(), "\r\n");
    while (lines.next()) |line| {
        // The decoder has checked them; only the last, after the last CRLF, has no colon.
        const colon = std.mem.indexOfScalar(u8, line, ':') orelse continue;
        const field = try capi.owned(capi.PyTuple_New(2));
        defer capi.drop(field);
        const value = std.mem.trim(u8, line[colon + 1 ..], " \t");
        try capi.checked(capi.PyTuple_SetItem(field, 0, try capi.latin1(line[0..colon])));
        try capi.checked(capi.PyTuple_SetItem(field, 1, try capi.latin1(value)));
        try capi.checked(capi.PyList_Append(list, field));
    }
    return list;
}

/// What was read ahead and not given out yet.
fn rest_ahead(self: *const InputStream) []const u8 {
    const ahead = self.ahead orelse return "";
    return capi.bytes_of(ahead)[self.ahead_used..];
}

fn take_ahead(self: *InputStream, count: usize) void {
    self.ahead_used += count;
    if (rest_is_empty(self)) {
        capi.drop_maybe(self.ahead);
        self.ahead = null;
        self.ahead_used = 0;
    }
}

/// New bytes, at most `limit` of them (null: all there are); fewer only at the end of the body.
fn read_bytes(self: *InputStream, limit: ?usize) capi.Error!*Object {
    if (limit) |size| return read_exactly(self, size);
    return read_all(self);
}

fn read_exactly(self: *InputStream, size: usize) capi.Error!*Object {
    const body = body_of(self);
    var expected: u64 = rest_ahead(self).len;
    if (body) |one| expected += one.readable();
    const streamed = if (body) |one| one.mode == .streamed else false;
    // A size beyond what can come must not be allocated on the application's word.
    if (streamed and size > block_bytes) return read_growing(self, size);
    const wanted: usize = if (streamed) size else @intCast(@min(size, expected));
    if (body) |one| if (self.ahead == null and !self.busy) {
        // The usual case costs one copy, by libc's memcpy for the CPU at hand.
        if (one.take_from_memory(wanted)) |bytes| return capi.bytes_from(bytes);
    };
    const result = try capi.owned(capi.PyBytes_FromStringAndSize(null, @intCast(wanted)));
    errdefer capi.drop(result);
    const target = (capi.PyBytes_AsString(result) orelse return error.Raised)[0..wanted];
    const done = try fill(self, target);
    if (done == wanted) {
        // Nothing to read is also how the end shows; a stream after its request must say so.
        if (wanted == 0 and size > 0 and body == null) _ = try read_once(self, target);
        return result;
    }
    defer capi.drop(result);
    return capi.bytes_from(target[0..done]);
}

fn fill(self: *InputStream, target: []u8) capi.Error!usize {
    const ahead = rest_ahead(self);
    var done = @min(ahead.len, target.len);
    @memcpy(target[0..done], ahead[0..done]);
    if (done > 0) take_ahead(self, done);
    while (done < target.len) {
        const count = try read_once(self, target[done..]);
        if (count == 0) break;
        done += count;
    }
    return done;
}

fn read_all(self: *InputStream) capi.Error!*Object {
    if (body_of(self)) |body| if (body.mode != .streamed) {
        return read_exactly(self, rest_ahead(self).len + @as(usize, @intCast(body.readable())));
    };
    return read_growing(self, std.math.maxInt(usize));
}

/// Collects blocks until `limit` or the end, for a body that is still to come.
fn read_growing(self: *InputStream, limit: usize) capi.Error!*Object {
    const gpa = std.heap.c_allocator;
    var collected: std.ArrayList(u8) = .empty;
    defer collected.deinit(gpa);
    while (collected.items.len < limit) {
        const size = @min(@max(block_bytes, collected.items.len), limit - collected.items.len);
        collected.ensureUnusedCapacity(gpa, size) catch return memory_error();
        const count = try fill_some(self, collected.unusedCapacitySlice()[0..size]);
        if (count == 0) break;
        collected.items.len += count;
    }
    return capi.bytes_from(collected.items);
}

fn fill_some(self: *InputStream, target: []u8) capi.Error!usize {
    const ahead = rest_ahead(self);
    if (ahead.len == 0) return read_once(self, target);
    const count = @min(ahead.len, target.len);
    @memcpy(target[0..count], ahead[0..count]);
    take_ahead(self, count);
    return count;
}

/// A line with its LF, at most `limit` bytes of it; empty at the end.
fn read_line(self: *InputStream, limit: ?usize) capi.Error!*Object {
    const gpa = std.heap.c_allocator;
    const longest = limit orelse std.math.maxInt(usize);
    var line: std.ArrayList(u8) = .empty;
    defer line.deinit(gpa);
    while (line.items.len < longest) {
        if (rest_is_empty(self)) try look_ahead(self);
        const rest = rest_ahead(self);
        if (rest.len == 0) break;
        const room = rest[0..@min(rest.len, longest - line.items.len)];
        const end = std.mem.indexOfScalar(u8, room, '\n');
        const piece = if (end) |index| room[0 .. index + 1] else room;
        line.appendSlice(gpa, piece) catch return memory_error();
        take_ahead(self, piece.len);
        if (end != null) break;
    }
    return capi.bytes_from(line.items);
}

fn rest_is_empty(self: *const InputStream) bool {
    return rest_ahead(self).len == 0;
}

/// Reads a block of the body into `ahead`.
fn look_ahead(self: *InputStream) capi.Error!void {
    const block = try capi.owned(capi.PyBytes_FromStringAndSize(null, block_bytes));
    errdefer capi.drop(block);
    const target = (capi.PyBytes_AsString(block) orelse return error.Raised)[0..block_bytes];
    const count = try read_once(self, target);
    if (count == block_bytes) {
        self.ahead = block;
    } else {
        self.ahead = if (count == 0) null else try capi.bytes_from(target[0..count]);
        capi.drop(block);
    }
    self.ahead_used = 0;
}

// ---- Methods -----------------------------------------------------------------------------------

/// The optional size argument: null for none, None or a negative number.
fn size_argument(given: ?*Object) capi.Error!?usize {
    const object = given orelse return null;
    if (capi.is_none(object)) return null;
    const index = try capi.owned(capi.PyNumber_Index(object));
    defer capi.drop(index);
    const size = capi.PyLong_AsSsize_t(index);
    if (size == -1 and capi.PyErr_Occurred() != null) return error.Raised;
    return if (size < 0) null else @intCast(size);
}

/// A method of one optional size, under the name that io.BufferedIOBase has for it.
fn sized_method(
    comptime name: []const u8,
    comptime parameter: [:0]const u8,
    comptime function: fn (*InputStream, ?usize) capi.Error!*Object,
    comptime doc: [*:0]const u8,
) capi.MethodDef {
    const signature: arguments_module.Signature = .{
        .function = name,
        .parameters = &.{parameter},
        .required = 0,
    };
    const Method = struct {
        fn call(
            object: ?*Object,
            values: [*]const *Object,
            count: capi.ssize,
            names: ?*Object,
        ) callconv(.c) ?*Object {
            return run(of(object), values, @intCast(count), names) catch null;
        }

        fn run(
            self: *InputStream,
            values: [*]const *Object,
            count: usize,
            names: ?*Object,
        ) capi.Error!*Object {
            const given = try arguments_module.bind(signature, values, count, names);
            return function(self, try size_argument(given[0]));
        }
    };
    return capi.named_method(name ++ "", Method.call, doc);
}

/// Lines until their bytes reach the hint, as io.IOBase.readlines counts them.
fn collect_lines(self: *InputStream, hint: ?usize) capi.Error!*Object {
    const list = try capi.owned(capi.PyList_New(0));
    errdefer capi.drop(list);
    var total: usize = 0;
    while (true) {
        const line = try read_line(self, null);
        defer capi.drop(line);
        const size = capi.bytes_of(line).len;
        if (size == 0) return list;
        try capi.checked(capi.PyList_Append(list, line));
        total += size;
        if (hint) |most| if (most > 0 and total >= most) return list;
    }
}

fn iter(object: *Object) callconv(.c) ?*Object {
    return capi.new(object);
}

fn iternext(object: *Object) callconv(.c) ?*Object {
    const line = read_line(of(object), null) catch return null;
    if (capi.bytes_of(line).len > 0) return line;
    capi.drop(line);
    return null;
}

/// PEP 3333 has no close; frameworks that treat the stream as a file call it all the same.
fn close(_: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    return capi.none();
}

fn readable(_: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    return capi.boolean(true);
}

const methods = [_]capi.MethodDef{
    sized_method(
        "read",
        "size",
        read_bytes,
        "read(size=None) -> bytes; all that is left without a size",
    ),
    sized_method("readline", "size", read_line, "readline(size=None) -> one line with its LF"),
    sized_method("readlines", "hint", collect_lines, "readlines(hint=None) -> list of lines"),
    capi.plain_method("readable", readable, "True"),
    capi.plain_method("close", close, "Does nothing: the stream is the server's"),
    capi.not_pickled,
    .{},
};

const members = capi.weak_references_at(@offsetOf(InputStream, "weak_references"));

const slots = [_]capi.Slot{
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.tp_iter, @ptrCast(&iter)),
    capi.slot(capi.tp_iternext, @ptrCast(&iternext)),
    capi.slot(capi.tp_methods, @ptrCast(&methods)),
    capi.slot(capi.tp_members, @ptrCast(&members)),
    capi.slot(capi.tp_doc, "The body of a request (PEP 3333, wsgi.input)"),
    capi.slot_end,
};

const spec: capi.Spec = .{
    .name = "serve_zig._core.InputStream",
    .basicsize = @sizeOf(InputStream),
    .flags = capi.type_no_instances | capi.type_immutable,
    .slots = &slots,
};
