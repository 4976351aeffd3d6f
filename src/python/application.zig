//! Calls the WSGI application for a request and sends what it returns (PEP 3333).
//!
//! `Bridge` is the core's `Application`: everything runs on a worker that has the GIL. Whatever the
//! application does ends here: an exception of any kind is reported and answered 500, or, with the
//! head sent, the connection is cut so that the client sees that something is missing. `close` of
//! the iterable is called once, always.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const call_module = @import("call.zig");
const environ_module = @import("environ.zig");
const input_stream = @import("input_stream.zig");
const file_wrapper = @import("file_wrapper.zig");
const names_module = @import("names.zig");
const Object = capi.Object;
const Crew = core.server.Crew;
const Names = names_module.Names;
const Environs = environ_module.Environs;

/// A list of pieces up to this size leaves in one send.
const joined_bytes_max = 64 * 1024;

/// How a request went wrong, for `report`.
const Trouble = error{
    /// A Python exception is set.
    Raised,
    /// Nobody is there to answer.
    ClientGone,
};

pub const Listener = struct { name: *Object, port: *Object };

pub const Bridge = struct {
    gpa: std.mem.Allocator,
    application: *Object,
    report: *Object,
    context_type: *Object,
    names: Names,
    environs: Environs,
    /// By worker; null until the worker's first request and after an application kept one.
    handles: []?call_module.Handles,

    pub fn create(
        gpa: std.mem.Allocator,
        application: *Object,
        report: *Object,
        listeners: []const Listener,
        options: *const core.server.Options,
    ) (capi.Error || error{OutOfMemory})!*Bridge {
        const self = try gpa.create(Bridge);
        errdefer gpa.destroy(self);
        self.gpa = gpa;
        self.names = try Names.init();
        try input_stream.init_type();
        try call_module.init_type();
        call_module.handles_of = handles_of;
        const wrapper = try file_wrapper.init_type(&self.names.keys);
        const contextvars = try capi.owned(capi.PyImport_ImportModule("contextvars"));
        defer capi.drop(contextvars);
        self.context_type = try capi.owned(capi.PyObject_GetAttrString(contextvars, "Context"));
        const empty_input = try empty_stream();
        const bases = try gpa.alloc(*Object, listeners.len);
        for (bases, listeners) |*base, listener| {
            base.* = try self.base_environ(listener, wrapper, empty_input);
        }
        const connections = options.connections;
        self.environs = try Environs.init(gpa, &self.names, bases, empty_input, connections);
        self.handles = try gpa.alloc(?call_module.Handles, options.threads + 1);
        @memset(self.handles, null);
        self.application = capi.new(application);
        self.report = capi.new(report);
        return self;
    }

    /// The stream of requests without a body: one for all, since it has nothing to remember.
    fn empty_stream() capi.Error!*Object {
        const io = try capi.owned(capi.PyImport_ImportModule("_io"));
        defer capi.drop(io);
        const kind = try capi.owned(capi.PyObject_GetAttrString(io, "BytesIO"));
        defer capi.drop(kind);
        return capi.owned(capi.PyObject_CallNoArgs(kind));
    }

    /// What every environ of a listener holds. All keys that a request may set to something else
    /// are here too, so that setting them never makes the copied dict grow.
    fn base_environ(
        self: *Bridge,
        listener: Listener,
        wrapper: *Object,
        empty_input: *Object,
    ) capi.Error!*Object {
        const keys = &self.names.keys;
        const names = &self.names;
        const environ = try capi.owned(capi.PyDict_New());
        const sys_module = try capi.owned(capi.PyImport_ImportModule("sys"));
        defer capi.drop(sys_module);
        const errors = try capi.owned(capi.PyObject_GetAttrString(sys_module, "stderr"));
        const version = try capi.owned(capi.PyTuple_New(2));
        try capi.checked(capi.PyTuple_SetItem(version, 0, try integer(1)));
        try capi.checked(capi.PyTuple_SetItem(version, 1, try integer(0)));
        const entries = .{
            .{ keys.REQUEST_METHOD, capi.new(names.empty_string) },
            .{ keys.SCRIPT_NAME, capi.new(names.empty_string) },
            .{ keys.PATH_INFO, capi.new(names.empty_string) },
            .{ keys.QUERY_STRING, capi.new(names.empty_string) },
            .{ keys.RAW_URI, capi.new(names.empty_string) },
            .{ keys.REQUEST_URI, capi.new(names.empty_string) },
            .{ keys.REMOTE_ADDR, capi.new(names.empty_string) },
            .{ keys.REMOTE_PORT, capi.new(names.empty_string) },
            .{ keys.SERVER_NAME, capi.new(listener.name) },
            .{ keys.SERVER_PORT, capi.new(listener.port) },
            .{ keys.SERVER_PROTOCOL, capi.new(names.http_1_1) },
            .{ keys.SERVER_SOFTWARE, try capi.interned("serve-zig/" ++ core.version) },
            .{ keys.@"wsgi.version", version },
            .{ keys.@"wsgi.url_scheme", try capi.interned("http") },
            .{ keys.@"wsgi.input", capi.new(empty_input) },
            .{ keys.@"wsgi.errors", errors },
            .{ keys.@"wsgi.multithread", capi.boolean(true) },
            .{ keys.@"wsgi.multiprocess", capi.boolean(false) },
            .{ keys.@"wsgi.run_once", capi.boolean(false) },
            .{ keys.@"wsgi.file_wrapper", capi.new(wrapper) },
            .{ keys.@"wsgi.input_terminated", capi.boolean(true) },
            .{ keys.@"wsgi.early_hints", capi.none() },
            .{ keys.@"serve_zig.client_disconnected", capi.none() },
        };
        inline for (entries) |entry| {
            defer capi.drop(entry[1]);
            try capi.checked(capi.PyDict_SetItem(environ, entry[0], entry[1]));
        }
        return environ;
    }

    fn integer(value: i64) capi.Error!*Object {
        return capi.owned(capi.PyLong_FromLongLong(value));
    }

    pub fn as_application(self: *Bridge) core.server.Application {
        return .{
            .context = self,
            .handle = handle,
            .interlude = .{ .leave = leave, .enter = enter },
        };
    }

    fn leave() ?*anyopaque {
        return capi.PyEval_SaveThread();
    }

    fn enter(state: ?*anyopaque) void {
        capi.PyEval_RestoreThread(@ptrCast(state));
    }

    fn of(context: *anyopaque) *Bridge {
        return @ptrCast(@alignCast(context));
    }

    fn handles_of(crew: *Crew) *const call_module.Handles {
        const self = of(crew.server.application.context);
        return &self.handles[crew.worker.index].?;
    }

    // ---- One request -----------------------------------------------------------------------

    fn handle(context: *anyopaque, crew: *Crew) void {
        const self = of(context);
        self.handle_in_context(crew) catch {
            // Not even the context could be made: the memory is gone.
            self.give_up(crew, error.Raised);
        };
    }

    /// Each request has a contextvars context of its own, so that nothing leaks into the next.
    fn handle_in_context(self: *Bridge, crew: *Crew) capi.Error!void {
        const slot = &self.handles[crew.worker.index];
        if (slot.* == null) slot.* = try call_module.Handles.create(&step_definition);
        const handles = slot.*.?;
        handles.call.crew = crew;
        defer {
            handles.close_for_good();
            if (handles.are_kept()) {
                handles.drop();
                slot.* = null;
            }
        }
        const request_context = try capi.owned(capi.PyObject_CallNoArgs(self.context_type));
        defer capi.drop(request_context);
        const end: ?*Object = null;
        const result = try capi.owned(capi.PyObject_CallMethodObjArgs(
            request_context,
            self.names.keys.run,
            handles.step,
            end,
        ));
        capi.drop(result);
    }

    /// What `Context.run` calls.
    fn step(object: ?*Object, _: ?*Object) callconv(.c) ?*Object {
        const call = call_module.of(object);
        const crew = call.crew.?;
        const self = of(crew.server.application.context);
        self.serve(crew);
        return capi.none();
    }

    fn serve(self: *Bridge, crew: *Crew) void {
        var input: ?*input_stream.InputStream = null;
        if (crew.exchange.body.mode != .none) {
            input = input_stream.create(crew) catch |err| return self.give_up(crew, err);
        }
        defer if (input) |stream| {
            input_stream.close_for_good(stream);
            capi.drop(&stream.head);
        };
        const iterable = self.call_application(crew, input) catch |err| {
            return self.give_up(crew, err);
        };
        defer capi.drop(iterable);
        self.respond(crew, iterable) catch |err| self.give_up(crew, err);
        self.close_iterable(iterable) catch |err| self.give_up(crew, err);
    }

    fn call_application(
        self: *Bridge,
        crew: *Crew,
        input: ?*input_stream.InputStream,
    ) capi.Error!*Object {
        const handles = handles_of(crew);
        const environ = try self.environs.build(crew, handles, input);
        defer capi.drop(environ);
        const end: ?*Object = null;
        return capi.owned(capi.PyObject_CallFunctionObjArgs(
            self.application,
            environ,
            handles.start_response,
            end,
        ));
    }

    fn close_iterable(self: *Bridge, iterable: *Object) capi.Error!void {
        if (capi.is_exact(iterable, &capi.PyList_Type)) return;
        if (capi.is_exact(iterable, &capi.PyTuple_Type)) return;
        if (capi.PyObject_HasAttr(iterable, self.names.keys.close) == 0) return;
        const end: ?*Object = null;
        const result = capi.PyObject_CallMethodObjArgs(iterable, self.names.keys.close, end);
        capi.drop(try capi.owned(result));
    }

    // ---- The response --------------------------------------------------------------------------

    fn respond(self: *Bridge, crew: *Crew, iterable: *Object) Trouble!void {
        if (capi.is_exact(iterable, &capi.PyList_Type)) {
            const count = capi.PyList_Size(iterable);
            if (count == 1) return self.respond_single(crew, capi.PyList_GetItem(iterable, 0).?);
            try self.respond_sequence(crew, iterable, count, capi.PyList_GetItem);
        } else if (capi.is_exact(iterable, &capi.PyTuple_Type)) {
            const count = capi.PyTuple_Size(iterable);
            if (count == 1) return self.respond_single(crew, capi.PyTuple_GetItem(iterable, 0).?);
            try self.respond_sequence(crew, iterable, count, capi.PyTuple_GetItem);
        } else {
            try self.respond_iterator(crew, iterable);
        }
        return self.finish(crew);
    }

    fn respond_single(self: *Bridge, crew: *Crew, piece: *Object) Trouble!void {
        const bytes = try piece_bytes(piece);
        // The list may be changed by another thread while the client is waited for.
        _ = capi.new(piece);
        defer capi.drop(piece);
        try self.write(crew, bytes, bytes.len);
        return self.finish(crew);
    }

    /// All pieces are there, so the length is known, and a wrong piece is found before the head is
    /// sent. Small ones leave together.
    fn respond_sequence(
        self: *Bridge,
        crew: *Crew,
        sequence: *Object,
        count: capi.ssize,
        comptime item: fn (*Object, capi.ssize) callconv(.c) ?*Object,
    ) Trouble!void {
        var total: u64 = 0;
        var index: capi.ssize = 0;
        while (index < count) : (index += 1) {
            const piece = item(sequence, index) orelse return error.Raised;
            total += (try piece_bytes(piece)).len;
        }
        if (total <= joined_bytes_max) return self.write_joined(crew, sequence, count, total, item);
        index = 0;
        while (index < count) : (index += 1) {
            // Another thread may have changed the list while the client was waited for.
            const piece = item(sequence, index) orelse return error.Raised;
            const bytes = try piece_bytes(piece);
            _ = capi.new(piece);
            defer capi.drop(piece);
            if (bytes.len > 0) try self.write(crew, bytes, total);
        }
    }

    fn write_joined(
        self: *Bridge,
        crew: *Crew,
        sequence: *Object,
        count: capi.ssize,
        total: u64,
        comptime item: fn (*Object, capi.ssize) callconv(.c) ?*Object,
    ) Trouble!void {
        const joined = self.gpa.alloc(u8, @intCast(total)) catch {
            _ = capi.PyErr_NoMemory();
            return error.Raised;
        };
        defer self.gpa.free(joined);
        var used: usize = 0;
        var index: capi.ssize = 0;
        while (index < count) : (index += 1) {
            const piece = item(sequence, index) orelse return error.Raised;
            const bytes = try piece_bytes(piece);
            @memcpy(joined[used..][0..bytes.len], bytes);
            used += bytes.len;
        }
        return self.write(crew, joined, total);
    }

    fn respond_iterator(self: *Bridge, crew: *Crew, iterable: *Object) Trouble!void {
        const iterator = try capi.owned(capi.PyObject_GetIter(iterable));
        defer capi.drop(iterator);
        const single = is_of_length_one(iterable);
        while (capi.PyIter_Next(iterator)) |piece| {
            defer capi.drop(piece);
            const bytes = try piece_bytes(piece);
            if (bytes.len == 0) continue;
            try self.write(crew, bytes, if (single) bytes.len else null);
            // HEAD, 204, 304: nothing that would follow is sent.
            if (crew.reply.framing == .none) return;
        }
        if (capi.PyErr_Occurred() != null) return error.Raised;
    }

    /// PEP 3333, "Handling the Content-Length Header": then the first piece is the whole body.
    fn is_of_length_one(iterable: *Object) bool {
        const sq_length = 45;
        if (capi.PyType_GetSlot(iterable.type, sq_length) == null) return false;
        const size = capi.PyObject_Size(iterable);
        if (size < 0) capi.PyErr_Clear();
        return size == 1;
    }

    fn piece_bytes(piece: *Object) capi.Error![]const u8 {
        if (!capi.is_bytes(piece)) return capi.raise(
            capi.PyExc_TypeError,
            "the application's iterable must yield bytes (PEP 3333)",
        );
        return capi.bytes_of(piece);
    }

    fn write(self: *Bridge, crew: *Crew, bytes: []const u8, length: ?u64) Trouble!void {
        _ = self;
        if (!crew.reply.started) return not_started();
        crew.reply.write(bytes, length) catch |err| return trouble_of(err);
    }

    fn finish(self: *Bridge, crew: *Crew) Trouble!void {
        _ = self;
        if (!crew.reply.started) return not_started();
        crew.reply.finish() catch |err| return trouble_of(err);
    }

    fn not_started() Trouble {
        return capi.raise(
            capi.PyExc_AssertionError,
            "the application returned without having called start_response (PEP 3333)",
        );
    }

    fn trouble_of(err: core.reply.FinishError) Trouble {
        return switch (err) {
            error.ClientGone => error.ClientGone,
            error.BodyTooLong => capi.raise(
                capi.PyExc_ValueError,
                "the response body is longer than its Content-Length; it was cut",
            ),
            error.BodyTooShort => capi.raise(
                capi.PyExc_ValueError,
                "the response body is shorter than its Content-Length; the connection was closed",
            ),
            error.OutOfMemory => {
                _ = capi.PyErr_NoMemory();
                return error.Raised;
            },
            else => |head_error| capi.raise(
                capi.PyExc_ValueError,
                core.response_head.describe(@errorCast(head_error)).ptr,
            ),
        };
    }

    // ---- Errors --------------------------------------------------------------------------------

    /// Reports what went wrong and tells the client, as far as that is still possible.
    fn give_up(self: *Bridge, crew: *Crew, trouble: Trouble) void {
        const reply = &crew.reply;
        switch (trouble) {
            error.ClientGone => {},
            error.Raised => {
                const exception = capi.take_exception();
                defer capi.drop_maybe(exception);
                const client_left = reply.broken and is_os_error(exception);
                if (!client_left) self.report_trouble(crew, exception);
            },
        }
        if (reply.head_sent or reply.broken) {
            if (!reply.finished) reply.abort();
            return;
        }
        answer_500(reply) catch reply.abort();
    }

    fn is_os_error(exception: ?*Object) bool {
        const object = exception orelse return false;
        return capi.PyObject_IsInstance(object, capi.PyExc_OSError) == 1;
    }

    fn answer_500(reply: *core.reply.Reply) core.reply.FinishError!void {
        const text = "500 Internal Server Error\n";
        try reply.start("500 Internal Server Error");
        try reply.head.add("Content-Type", "text/plain; charset=utf-8");
        reply.must_close = true;
        try reply.write(text, text.len);
        try reply.finish();
    }

    /// Calls `report(exception, method, target, client)`.
    fn report_trouble(self: *Bridge, crew: *Crew, exception: ?*Object) void {
        self.call_report(crew, exception) catch capi.PyErr_WriteUnraisable(self.report);
    }

    fn call_report(self: *Bridge, crew: *Crew, exception: ?*Object) capi.Error!void {
        const kind = try capi.interned("application");
        defer capi.drop(kind);
        const message = self.names.empty_string;
        const exchange = crew.exchange;
        const method = try capi.latin1(exchange.head.method.of(exchange.bytes));
        defer capi.drop(method);
        const target = try capi.latin1(exchange.head.target.of(exchange.bytes));
        defer capi.drop(target);
        var storage: [core.sys.address_text_bytes_max]u8 = undefined;
        const address = core.sys.address_text(&crew.connection.address, &storage);
        const client = try capi.latin1(address);
        defer capi.drop(client);
        const end: ?*Object = null;
        const result = try capi.owned(capi.PyObject_CallFunctionObjArgs(
            self.report,
            kind,
            message,
            exception orelse &capi._Py_NoneStruct,
            method,
            target,
            client,
            end,
        ));
        capi.drop(result);
    }
};

const step_definition = capi.plain_method("serve_request", Bridge.step, "Serves one request");
