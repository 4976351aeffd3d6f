//! Calls the WSGI application for a request and sends what it returns (PEP 3333).
//!
//! `Bridge` is the core's `Application`: everything runs on a worker that has the GIL. Whatever the
//! application does ends here: an exception of any kind is reported and answered 500, or, with the
//! head sent, the connection is cut so that the client sees that something is missing. `close` of
//! the iterable is called once, always.
//!
//! A response whose client is slow is parked: its iterator, its context and what it has pinned wait
//! in a `Continuation`, and the thread is free. It goes on in the same thread, whatever else that
//! does meanwhile, and in the same context, so that neither thread-local nor context-local state
//! changes under a generator. Only a response that has called `serve_zig.any_thread` goes on in
//! whichever thread is free.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const handles = @import("handles.zig");
const environ_module = @import("environ.zig");
const suspend_module = @import("suspend.zig");
const input_stream = @import("input_stream.zig");
const file_wrapper = @import("file_wrapper.zig");
const names_module = @import("names.zig");
const Object = capi.Object;
const Call = handles.Call;
const Crew = core.server.Crew;
const Turn = core.connection.Turn;
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
    /// The request's body had failed before the application answered.
    Superseded,
};

pub const Listener = struct { name: *Object, port: *Object };

/// A response in progress. Owned references, but for the input.
const Response = struct {
    iterable: ?*Object = null,
    /// None where one piece is the whole body.
    iterator: ?*Object = null,
    /// The piece that the output still refers to.
    piece: ?*Object = null,
    /// The call's, where the request has a body.
    input: ?*input_stream.InputStream = null,
    /// Of the whole body, where it is known before the first piece is sent.
    length: ?u64 = null,
    /// The iterable says that it has one piece: the first that is not empty is the whole body.
    is_single: bool = false,
    /// Of our own file wrapper, of which no more is sent than the Content-Length says.
    is_file: bool = false,

    fn drop(self: *Response) void {
        capi.drop_maybe(self.iterator);
        capi.drop_maybe(self.iterable);
        self.drop_piece();
        self.* = .{};
    }

    fn drop_piece(self: *Response) void {
        capi.drop_maybe(self.piece);
        self.piece = null;
    }
};

/// A response that is parked: what the exchange's `continuation` points to.
const Continuation = struct {
    response: Response,
    context: *Object,
    call: *Call,
    /// Where the response was suspended before its head was sent.
    response_head: ?core.response_head.ResponseHead,
    /// Asked for, and to begin with the next empty string; a reference.
    suspension: ?*core.suspension.Suspension,
};

const State = enum { finished, parked };

/// What each worker has for the request that it serves.
const Seat = struct {
    /// By listener.
    templates: []?environ_module.Template = &.{},
    /// The request in progress; null when the application can do nothing to it any more.
    active: ?*Call = null,
    /// Of the request in progress; borrowed from its response.
    input: ?*input_stream.InputStream = null,
    /// Going on with this, instead of beginning a request.
    response: Response = .{},
    is_proceeding: bool = false,
    state: State = .finished,
    /// `step` was run, so that the response is its business.
    has_stepped: bool = false,
    /// The thread that has this seat, as Python knows it; 0 until its first request.
    thread_id: c_ulong = 0,
    /// The number of the call whose code may be interrupted by an exception; 0: none may.
    interruptible: u64 = 0,
    /// It has been, and the exception may not have been raised yet.
    interrupted: bool = false,

    /// From here on RequestTimeout may be raised in this thread.
    fn expose(self: *Seat, crew: *Crew) void {
        if (!crew.server.limits_calls()) return;
        if (self.thread_id == 0) self.thread_id = capi.PyThread_get_thread_ident();
        self.interruptible = crew.call.number();
    }

    /// From here on it may not, and one that was not raised yet is forgotten.
    fn shield(self: *Seat) void {
        self.interruptible = 0;
        if (!self.interrupted) return;
        self.interrupted = false;
        _ = capi.PyThreadState_SetAsyncExc(self.thread_id, null);
    }

    fn drop_template(self: *Seat, listener: u8, keys: *const names_module.Keys) void {
        if (self.templates[listener]) |*template| template.drop(keys);
        self.templates[listener] = null;
    }
};

pub const Bridge = struct {
    gpa: std.mem.Allocator,
    application: *Object,
    report: *Object,
    /// The method `copy` of an empty contextvars.Context, and `run` of any.
    copy_empty_context: *Object,
    run_in_context: *Object,
    names: Names,
    environs: Environs,
    /// By worker.
    seats: []Seat,

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
        try handles.init_types(step_function);
        try suspend_module.init_type();
        const wrapper = try file_wrapper.init_type(&self.names.keys);
        const contextvars = try capi.owned(capi.PyImport_ImportModule("contextvars"));
        defer capi.drop(contextvars);
        const context_type = try capi.owned(capi.PyObject_GetAttrString(contextvars, "Context"));
        defer capi.drop(context_type);
        // Copying an empty one is faster than calling the type.
        const empty_context = try capi.owned(capi.PyObject_CallNoArgs(context_type));
        defer capi.drop(empty_context);
        self.copy_empty_context = try capi.owned(
            capi.PyObject_GetAttrString(empty_context, "copy"),
        );
        self.run_in_context = try capi.owned(capi.PyObject_GetAttrString(context_type, "run"));
        const bases = try gpa.alloc(*Object, listeners.len);
        for (bases, listeners) |*base, listener| {
            base.* = try self.base_environ(listener, wrapper);
        }
        const connections = options.connections;
        const flavour = core.forwarded.Flavour.parse(options.proxy_headers) orelse .x_forwarded;
        self.environs = try Environs.init(&self.names, bases, connections, flavour);
        self.environs.tells_phases = options.phases;
        self.seats = try gpa.alloc(Seat, options.threads + 1);
        for (self.seats) |*seat| {
            seat.* = .{ .templates = try gpa.alloc(?environ_module.Template, listeners.len) };
            @memset(seat.templates, null);
        }
        self.application = capi.new(application);
        self.report = capi.new(report);
        return self;
    }

    /// What every environ of a listener holds. All keys that a request may set to something else
    /// are here too, so that setting them never makes the copied dict grow.
    fn base_environ(
        self: *Bridge,
        listener: Listener,
        wrapper: *Object,
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
            .{ keys.REQUEST_METHOD, capi.new(names.get) },
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
            .{ keys.@"wsgi.url_scheme", capi.new(names.http) },
            .{ keys.@"wsgi.input", capi.none() },
            .{ keys.@"wsgi.errors", errors },
            .{ keys.@"wsgi.multithread", capi.boolean(true) },
            .{ keys.@"wsgi.multiprocess", capi.boolean(false) },
            .{ keys.@"wsgi.run_once", capi.boolean(false) },
            .{ keys.@"wsgi.file_wrapper", capi.new(wrapper) },
            .{ keys.@"wsgi.input_terminated", capi.boolean(true) },
            .{ keys.@"wsgi.early_hints", capi.none() },
            .{ keys.@"serve_zig.client_disconnected", capi.none() },
            .{ keys.@"serve_zig.any_thread", capi.none() },
            .{ keys.@"x-wsgiorg.suspend", capi.none() },
            .{ keys.@"x-wsgiorg.fdevent.readable", capi.none() },
            .{ keys.@"x-wsgiorg.fdevent.writable", capi.none() },
            .{ keys.@"x-wsgiorg.fdevent.timeout", capi.none() },
            .{ keys.@"serve_zig.request_id", capi.none() },
            .{ keys.@"serve_zig.queue_seconds", capi.none() },
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
            .proceed = proceed,
            .interlude = .{ .leave = leave, .enter = enter },
        };
    }

    fn leave() ?*anyopaque {
        return capi.PyEval_SaveThread();
    }

    fn enter(state: ?*anyopaque) void {
        capi.PyEval_RestoreThread(@ptrCast(state));
    }

    pub fn of(context: *anyopaque) *Bridge {
        return @ptrCast(@alignCast(context));
    }

    // ---- One request -----------------------------------------------------------------------

    fn handle(context: *anyopaque, crew: *Crew) void {
        const self = of(context);
        self.begin(crew) catch {
            // Not even the context could be made: the memory is gone.
            self.give_up(crew, error.Raised);
        };
    }

    /// Each request has a contextvars context of its own, so that nothing leaks into the next.
    fn begin(self: *Bridge, crew: *Crew) capi.Error!void {
        const seat = &self.seats[crew.worker.index];
        seat.is_proceeding = false;
        seat.response = .{};
        const template = &seat.templates[crew.connection.listener];
        const call = try Call.create(if (template.*) |*one| one.call else null);
        const request_context = capi.PyObject_CallNoArgs(self.copy_empty_context) orelse {
            call.end();
            return error.Raised;
        };
        self.step_in(crew, seat, call, request_context);
    }

    fn template_of(
        self: *Bridge,
        seat: *Seat,
        listener: u8,
        call: *Call,
    ) capi.Error!*environ_module.Template {
        const slot = &seat.templates[listener];
        if (slot.* == null) slot.* = try self.environs.create_template(listener);
        const template = &slot.*.?;
        template.refer_to(&self.names.keys, call) catch |err| {
            slot.* = null;
            return err;
        };
        return template;
    }

    fn proceed(context: *anyopaque, crew: *Crew, opaque_continuation: *anyopaque) void {
        const self = of(context);
        const seat = &self.seats[crew.worker.index];
        const continuation: *Continuation = @ptrCast(@alignCast(opaque_continuation));
        const taken = continuation.*;
        self.gpa.destroy(continuation);
        seat.response = taken.response;
        seat.is_proceeding = true;
        if (taken.response.input) |stream| stream.crew = crew;
        if (taken.response_head) |head| crew.reply.put_head(head);
        taken.call.suspension = taken.suspension;
        self.step_in(crew, seat, taken.call, taken.context);
    }

    /// Serves, as far as it goes, inside the request's context. Uses up the context's reference,
    /// and the call.
    fn step_in(
        self: *Bridge,
        crew: *Crew,
        seat: *Seat,
        call: *Call,
        request_context: *Object,
    ) void {
        call.crew = crew;
        call.is_parked = false;
        seat.active = call;
        seat.state = .finished;
        seat.has_stepped = false;
        const end: ?*Object = null;
        const result = capi.PyObject_CallFunctionObjArgs(
            self.run_in_context,
            request_context,
            call.object(.step),
            end,
        );
        if (core.forks.is_child()) end_child(null);
        if (result) |none| capi.drop(none) else self.note_context_failure(crew, seat);
        call.close_for_good();
        seat.active = null;
        const asked_for = suspend_module.take(call);
        if (seat.state == .parked) {
            call.is_parked = true;
            self.park(crew, seat, request_context, call, asked_for);
        } else {
            suspend_module.forget(asked_for);
            call.end();
            capi.drop(request_context);
        }
        // Finalizers and callbacks of weak references may have forked as well.
        if (core.forks.is_child()) end_child(null);
    }

    /// The context could not be entered, for want of memory or since the application runs in it
    /// elsewhere; or it could not be left. The iterable is closed all the same.
    fn note_context_failure(self: *Bridge, crew: *Crew, seat: *Seat) void {
        if (seat.has_stepped) {
            const exception = capi.take_exception();
            defer capi.drop_maybe(exception);
            return self.report_trouble(crew, exception);
        }
        var response = seat.response;
        seat.response = .{};
        self.give_up(crew, error.Raised);
        self.close_response(crew, seat, &response);
    }

    fn park(
        self: *Bridge,
        crew: *Crew,
        seat: *Seat,
        request_context: *Object,
        call: *Call,
        suspension: ?*core.suspension.Suspension,
    ) void {
        // Another thread may go on reading, or begin to.
        if (seat.response.input) |stream| stream.crew = null;
        crew.connection.worker = if (needs_thread(crew, &seat.response)) &crew.worker else null;
        const continuation = self.gpa.create(Continuation) catch {
            crew.reply.progress.broken = true;
            if (seat.response.iterable) |iterable| {
                self.close_iterable(iterable) catch |err| self.give_up(crew, err);
            }
            seat.response.drop();
            suspend_module.forget(suspension);
            call.end();
            capi.drop(request_context);
            return;
        };
        continuation.* = .{
            .response = seat.response,
            .context = request_context,
            .call = call,
            .response_head = crew.reply.take_head(),
            .suspension = suspension,
        };
        seat.response = .{};
        crew.reply.park(continuation);
    }

    /// Whether code of the application is still to run, which may use what it has tied to the
    /// thread: `next()` of an iterator, `close()`.
    fn needs_thread(crew: *const Crew, response: *const Response) bool {
        if (crew.reply.progress.any_thread) return false;
        const iterable = response.iterable orelse return false;
        return !has_no_close(iterable);
    }

    /// What `Context.run` calls.
    fn step(object: *Object, _: [*]const *Object, _: usize, _: ?*Object) callconv(.c) ?*Object {
        const call = handles.of(object).call;
        const crew = call.crew orelse {
            capi.PyErr_SetString(capi.PyExc_RuntimeError, "no request is in progress");
            return null;
        };
        const self = of(crew.server.application.context);
        const seat = &self.seats[crew.worker.index];
        var response = seat.response;
        seat.response = .{};
        seat.has_stepped = true;
        seat.expose(crew);
        seat.state = self.advance(crew, call, seat.is_proceeding, &response) catch |err| blk: {
            seat.shield();
            self.give_up(crew, err);
            break :blk .finished;
        };
        if (seat.state == .parked) {
            seat.shield();
            seat.response = response;
        } else {
            self.close_response(crew, seat, &response);
        }
        return capi.none();
    }

    /// Nothing of the response is left to send.
    fn close_response(self: *Bridge, crew: *Crew, seat: *Seat, response: *Response) void {
        defer response.drop();
        const iterable = response.iterable orelse return seat.shield();
        const closed = self.close_iterable(iterable);
        seat.shield();
        closed catch |err| self.give_up(crew, err);
    }

    /// Raises an exception in a thread that is still in this call of the application; false when
    /// it is not. Any thread that has the GIL: the other cannot end the call meanwhile.
    pub fn interrupt(self: *Bridge, worker: u32, call: u64, exception: *Object) bool {
        if (worker >= self.seats.len or call == 0) return false;
        const seat = &self.seats[worker];
        if (seat.interruptible != call) return false;
        seat.interrupted = capi.PyThreadState_SetAsyncExc(seat.thread_id, exception) == 1;
        return seat.interrupted;
    }

    fn advance(
        self: *Bridge,
        crew: *Crew,
        call: *Call,
        is_proceeding: bool,
        response: *Response,
    ) Trouble!State {
        if (is_proceeding) {
            self.seats[crew.worker.index].input = response.input;
            call.timed_out = crew.reply.progress.timed_out;
            response.drop_piece();
            if (crew.reply.progress.broken) return error.ClientGone;
            if (crew.reply.progress.too_long) return trouble_of(error.BodyTooLong);
            if (response.iterator != null) return self.iterate(crew, response);
            return self.finish(crew);
        }
        if (crew.exchange.body.mode != .none) {
            input_stream.open(&call.input, crew);
            response.input = &call.input;
        }
        self.seats[crew.worker.index].input = response.input;
        response.iterable = try self.call_application(crew, call);
        return self.respond(crew, response);
    }

    fn call_application(self: *Bridge, crew: *Crew, call: *Call) capi.Error!*Object {
        const seat = &self.seats[crew.worker.index];
        const template = try self.template_of(seat, crew.connection.listener, call);
        const environ = self.environs.build(crew, template) catch |err| {
            seat.drop_template(crew.connection.listener, &self.names.keys);
            return err;
        };
        defer capi.drop(environ);
        const end: ?*Object = null;
        return capi.owned(capi.PyObject_CallFunctionObjArgs(
            self.application,
            environ,
            call.object(.start_response),
            end,
        ));
    }

    fn has_no_close(iterable: *Object) bool {
        return capi.is_exact(iterable, &capi.PyList_Type) or
            capi.is_exact(iterable, &capi.PyTuple_Type);
    }

    fn close_iterable(self: *Bridge, iterable: *Object) capi.Error!void {
        if (has_no_close(iterable)) return;
        const close = try capi.attribute(iterable, self.names.keys.close) orelse return;
        defer capi.drop(close);
        capi.drop(try capi.owned(capi.PyObject_CallNoArgs(close)));
    }

    // ---- The response --------------------------------------------------------------------------

    fn respond(self: *Bridge, crew: *Crew, response: *Response) Trouble!State {
        const iterable = response.iterable.?;
        if (capi.is_exact(iterable, &capi.PyList_Type)) {
            const count = capi.PyList_Size(iterable);
            return self.respond_sequence(crew, response, count, capi.PyList_GetItem);
        }
        if (capi.is_exact(iterable, &capi.PyTuple_Type)) {
            const count = capi.PyTuple_Size(iterable);
            return self.respond_sequence(crew, response, count, capi.PyTuple_GetItem);
        }
        if (file_wrapper.is_wrapper(iterable)) return self.respond_file(crew, response);
        response.iterator = try capi.owned(capi.PyObject_GetIter(iterable));
        response.is_single = try is_of_length_one(iterable);
        return self.iterate(crew, response);
    }

    /// From the file itself where it is one, else block by block.
    fn respond_file(self: *Bridge, crew: *Crew, response: *Response) Trouble!State {
        try self.check_may_write(crew);
        const wrapper = response.iterable.?;
        if (try self.offer_file(crew, wrapper)) |flow| {
            if (flow == .full and try self.settle(crew) == .full) return .parked;
            return self.finish(crew);
        }
        response.is_file = true;
        response.iterator = try capi.owned(capi.PyObject_GetIter(wrapper));
        return self.iterate(crew, response);
    }

    /// Null where the file has to be read. The GIL is given away, to open the file and to send it.
    fn offer_file(self: *Bridge, crew: *Crew, wrapper: *Object) Trouble!?core.reply.Flow {
        if (!crew.reply.takes_file()) return null;
        const call = self.seats[crew.worker.index].active.?;
        call.busy = true;
        const opened = file_wrapper.open_regular(wrapper);
        call.busy = false;
        var file = opened orelse return null;
        // The file's own methods may have called start_response, and it have failed.
        self.check_may_write(crew) catch |err| {
            file.close();
            return err;
        };
        call.busy = true;
        const flow = crew.reply.offer_file(file);
        call.busy = false;
        return flow catch |err| trouble_of(err);
    }

    /// All pieces are there, so the length is known, and a wrong piece is found before the head is
    /// sent. Small ones leave together.
    fn respond_sequence(
        self: *Bridge,
        crew: *Crew,
        response: *Response,
        count: capi.ssize,
        comptime item: fn (*Object, capi.ssize) callconv(.c) ?*Object,
    ) Trouble!State {
        const sequence = response.iterable.?;
        if (count == 1) {
            const piece = item(sequence, 0) orelse return error.Raised;
            return self.respond_single(crew, response, capi.new(piece));
        }
        var total: u64 = 0;
        var index: capi.ssize = 0;
        while (index < count) : (index += 1) {
            const piece = item(sequence, index) orelse return error.Raised;
            total += (try piece_bytes(piece)).len;
        }
        if (total > joined_bytes_max) {
            response.iterator = try capi.owned(capi.PyObject_GetIter(sequence));
            response.length = total;
            return self.iterate(crew, response);
        }
        return self.respond_single(crew, response, try join(sequence, count, total, item));
    }

    /// New bytes of all the pieces, which have been checked.
    fn join(
        sequence: *Object,
        count: capi.ssize,
        total: u64,
        comptime item: fn (*Object, capi.ssize) callconv(.c) ?*Object,
    ) capi.Error!*Object {
        const joined = try capi.owned(capi.PyBytes_FromStringAndSize(null, @intCast(total)));
        errdefer capi.drop(joined);
        const target = capi.PyBytes_AsString(joined) orelse return error.Raised;
        var used: usize = 0;
        var index: capi.ssize = 0;
        while (index < count) : (index += 1) {
            const piece = item(sequence, index) orelse return error.Raised;
            const bytes = try piece_bytes(piece);
            @memcpy(target[used..][0..bytes.len], bytes);
            used += bytes.len;
        }
        return joined;
    }

    /// Sends the one piece that is the whole body; its reference is used up.
    fn respond_single(
        self: *Bridge,
        crew: *Crew,
        response: *Response,
        piece: *Object,
    ) Trouble!State {
        response.piece = piece;
        const bytes = try piece_bytes(piece);
        if (try self.offer(crew, bytes, bytes.len) == .full) return .parked;
        return self.finish(crew);
    }

    fn iterate(self: *Bridge, crew: *Crew, response: *Response) Trouble!State {
        const iterator = response.iterator.?;
        var left_ns: ?u64 = null;
        // HEAD, 204, 304: nothing that would follow the head is sent.
        while (!has_said_all(crew, response)) {
            const piece = capi.PyIter_Next(iterator) orelse break;
            response.piece = piece;
            var bytes = try piece_bytes(piece);
            if (response.is_file) bytes = crew.reply.cut_to_length(bytes);
            if (bytes.len > 0) {
                const length = if (response.is_single) bytes.len else response.length;
                if (try self.offer(crew, bytes, length) == .full) return .parked;
                left_ns = null;
            } else {
                // Before the response is suspended: its finalizer may use the request.
                response.drop_piece();
                if (self.begin_suspension(crew)) return .parked;
                try check_client(crew, &left_ns);
            }
            response.drop_piece();
        }
        if (capi.PyErr_Occurred() != null) return error.Raised;
        return self.finish(crew);
    }

    /// An iterable may yield empty strings until it has something (PEP 3333, "Middleware Handling
    /// of Block Boundaries"). Nothing is sent that would fail, but it ends with its client too.
    fn check_client(crew: *Crew, left_ns: *?u64) error{ClientGone}!void {
        const connection = crew.connection;
        // The poller leaves word there, so that this costs no system call.
        const seen = connection.turn.load(.acquire);
        if (seen & Turn.broken == 0) {
            if (!connection.hangup and seen & Turn.hangup == 0) return;
            // What is still being sent will show whether somebody takes it.
            if (crew.reply.is_lent.load(.acquire)) return;
            const now_ns = core.sys.monotonic_ns();
            const since_ns = left_ns.* orelse now_ns;
            left_ns.* = since_ns;
            if (now_ns - since_ns < core.poller.half_closed_ms * std.time.ns_per_ms) return;
        }
        crew.reply.progress.broken = true;
        crew.exchange.record.client_gone = true;
        return error.ClientGone;
    }

    /// The application has yielded an empty string. Whether it asked to be parked until an event
    /// of its own; where that can't be, its thread waits here.
    fn begin_suspension(self: *Bridge, crew: *Crew) bool {
        const active = self.seats[crew.worker.index].active.?;
        const suspension = suspend_module.take(active) orelse return false;
        crew.reply.push();
        if (self.may_park(crew)) {
            crew.exchange.suspension = suspension;
            return true;
        }
        const state = capi.PyEval_SaveThread();
        const timed_out = suspension.wait(crew.connection);
        capi.PyEval_RestoreThread(state);
        crew.reply.progress.timed_out = timed_out;
        active.timed_out = timed_out;
        suspension.release(std.heap.c_allocator);
        return false;
    }

    fn has_said_all(crew: *Crew, response: *const Response) bool {
        const progress = &crew.reply.progress;
        if (progress.head_sent and progress.framing == .none) return true;
        return response.is_file and crew.reply.length_left() == 0;
    }

    /// PEP 3333, "Handling the Content-Length Header": then the first piece is the whole body.
    fn is_of_length_one(iterable: *Object) capi.Error!bool {
        const sq_length = 45;
        if (capi.PyType_GetSlot(iterable.type, sq_length) == null) return false;
        const size = capi.PyObject_Size(iterable);
        // With wsgiref, too, these say that it has no length.
        if (size < 0) try capi.forgive(&.{
            capi.PyExc_TypeError,
            capi.PyExc_AttributeError,
            capi.PyExc_NotImplementedError,
        });
        return size == 1;
    }

    fn piece_bytes(piece: *Object) capi.Error![]const u8 {
        if (!capi.is_bytes(piece)) return capi.raise(
            capi.PyExc_TypeError,
            "the application's iterable must yield bytes (PEP 3333)",
        );
        return capi.bytes_of(piece);
    }

    fn offer(
        self: *Bridge,
        crew: *Crew,
        bytes: []const u8,
        length: ?u64,
    ) Trouble!core.reply.Flow {
        try self.check_may_write(crew);
        const flow = crew.reply.offer(bytes, length) catch |err| return trouble_of(err);
        return if (flow == .full) self.settle(crew) else flow;
    }

    /// Waits until the client has taken everything, without the GIL, where the response can't park.
    fn settle(self: *Bridge, crew: *Crew) Trouble!core.reply.Flow {
        if (self.may_park(crew)) return .full;
        const call = self.seats[crew.worker.index].active.?;
        call.busy = true;
        const settled = crew.reply.settle();
        call.busy = false;
        settled catch |err| return trouble_of(err);
        return .more;
    }

    /// Not while another thread of the application reads the request's body, or writes: it needs
    /// the worker.
    fn may_park(self: *Bridge, crew: *Crew) bool {
        const seat = &self.seats[crew.worker.index];
        if (seat.active.?.busy) return false;
        const input = seat.input orelse return true;
        return !input.busy;
    }

    fn finish(self: *Bridge, crew: *Crew) Trouble!State {
        try self.check_may_write(crew);
        crew.reply.finish() catch |err| return trouble_of(err);
        return .finished;
    }

    fn check_may_write(self: *Bridge, crew: *Crew) capi.Error!void {
        if (core.forks.is_child()) end_child(null);
        if (!crew.reply.progress.started) return capi.raise(
            capi.PyExc_AssertionError,
            "the application returned without having called start_response (PEP 3333)",
        );
        const active = self.seats[crew.worker.index].active.?;
        if (active.busy) return capi.raise(
            capi.PyExc_RuntimeError,
            "the application returned while another thread was still calling write",
        );
    }

    fn trouble_of(err: core.reply.FinishError) Trouble {
        return switch (err) {
            error.ClientGone => error.ClientGone,
            error.Superseded => error.Superseded,
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
            error.ClientGone, error.Superseded => if (core.forks.is_child()) end_child(null),
            error.Raised => {
                const exception = capi.take_exception();
                defer capi.drop_maybe(exception);
                if (core.forks.is_child()) end_child(exception);
                if (!is_client_failure(crew, exception)) self.report_trouble(crew, exception);
            },
        }
        if (!self.may_answer(crew)) {
            if (!reply.progress.finished) reply.abort();
        } else if (crew.exchange.record.body_error) |err| {
            answer_body_error(crew, err) catch reply.abort();
        } else {
            answer_error(reply, 500, "") catch reply.abort();
        }
    }

    /// Not in the middle of another thread's early hints.
    fn may_answer(self: *Bridge, crew: *const Crew) bool {
        const progress = &crew.reply.progress;
        const active = self.seats[crew.worker.index].active;
        const is_busy = if (active) |call| call.busy else false;
        return !progress.head_sent and !progress.broken and !is_busy;
    }

    /// The application has forked this process, and comes back in it from its handler: there is
    /// nothing to come back to.
    fn end_child(exception: ?*Object) noreturn {
        const end: ?*Object = null;
        if (capi.PyImport_ImportModule("serve_zig.forks")) |module| {
            if (capi.PyObject_GetAttrString(module, "end_child")) |function| {
                const given = exception orelse capi.none();
                _ = capi.PyObject_CallFunctionObjArgs(function, given, end);
            }
        }
        // For want of memory, say: there is nobody left to tell.
        core.sys.exit_now(1);
    }

    /// Whether the application's exception comes from the client, or from a limit of the server's,
    /// so that it is no fault of the application. Clients could fill the log with such tracebacks.
    fn is_client_failure(crew: *const Crew, exception: ?*Object) bool {
        const record = &crew.exchange.record;
        if (!crew.reply.progress.broken and !record.client_gone and record.body_error == null) {
            return false;
        }
        const object = exception orelse return false;
        return input_stream.comes_from_failure(object, record.body_error);
    }

    /// The same answer as if the body had failed while it was gathered; none to a client that left.
    fn answer_body_error(
        crew: *Crew,
        err: core.body.ReadError,
    ) core.reply.FinishError!void {
        if (err == error.ClientGone) return crew.reply.abort();
        const refusal = core.body.refusal_of(err);
        const record = &crew.exchange.record;
        record.reason = core.reasons.of(refusal.reason);
        record.timed_out = null; // the reason says it
        return answer_error(&crew.reply, refusal.status, refusal.reason);
    }

    /// An answer of the server's own, as `refusal.write` words it.
    fn answer_error(
        reply: *core.reply.Reply,
        code: u16,
        reason: []const u8,
    ) core.reply.FinishError!void {
        var status_storage: [64]u8 = undefined;
        const phrase = core.refusal.phrase_of(code);
        const status = std.fmt.bufPrint(&status_storage, "{d} {s}", .{ code, phrase }) catch "";
        var storage: [128]u8 = undefined;
        const colon = if (reason.len > 0) ": " else "";
        const line = .{ status, colon, reason };
        const text = std.fmt.bufPrint(&storage, "{s}{s}{s}\n", line) catch status;
        try reply.start(status);
        try reply.head.add("Content-Type", "text/plain; charset=utf-8");
        reply.progress.must_close = true;
        _ = try reply.offer(text, text.len);
        try reply.finish();
    }

    /// Calls `report(kind, message, exception, method, target, client, request_id)`.
    fn report_trouble(self: *Bridge, crew: *Crew, exception: ?*Object) void {
        crew.lane.shard.app_exceptions.add(1);
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
        const address = core.sys.address_text(crew.connection.client(), &storage);
        const client = try capi.latin1(address);
        defer capi.drop(client);
        const request_id = try capi.latin1(crew.exchange.request_id());
        defer capi.drop(request_id);
        const end: ?*Object = null;
        const result = try capi.owned(capi.PyObject_CallFunctionObjArgs(
            self.report,
            kind,
            message,
            exception orelse &capi._Py_NoneStruct,
            method,
            target,
            client,
            request_id,
            end,
        ));
        capi.drop(result);
    }
};

const step_function: handles.Function = .{
    .name = "step",
    .doc = "Serves one request, as far as it goes",
    .vectorcall = Bridge.step,
};
