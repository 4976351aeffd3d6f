//! What the tests of the whole server share: an application without Python, a server on a real
//! loopback or unix socket, and clients with timeouts.
//!
//! `gil` stands for the GIL: whoever calls the application holds it, and `Interlude` gives it away.
//! Every piece of a response body is memory of its own that is freed as soon as the application is
//! done with it, so that a use after that is seen. Clients belong to the thread that made them.

const std = @import("std");
const testing = std.testing;
const c = std.c;
const sys = @import("sys.zig");
const kernel = @import("kernel_fixture.zig");
const server_module = @import("server.zig");
const body_module = @import("body.zig");
const reply_module = @import("reply.zig");
const ResponseHead = @import("response_head.zig").ResponseHead;
const Turn = @import("connection.zig").Turn;
const Suspension = @import("suspension.zig").Suspension;
const FilePart = @import("file_part.zig").FilePart;
const Crew = server_module.Crew;
const Server = server_module.Server;

const gpa = testing.allocator;

/// How long a test waits for what must happen: far longer than it takes, also on a busy machine.
pub const patience_ms = 30_000;

// ---- The application -------------------------------------------------------------------------

var gil: std.Thread.Mutex = .{};
threadlocal var holds_gil = false;

pub fn leave() ?*anyopaque {
    std.debug.assert(holds_gil);
    holds_gil = false;
    gil.unlock();
    return null;
}

pub fn enter(_: ?*anyopaque) void {
    gil.lock();
    holds_gil = true;
}

const interlude: body_module.Interlude = .{ .leave = leave, .enter = enter };

fn leave_nothing() ?*anyopaque {
    return null;
}

fn enter_nothing(_: ?*anyopaque) void {}

/// For tests without any application.
pub const free_interlude: body_module.Interlude = .{
    .leave = leave_nothing,
    .enter = enter_nothing,
};

/// What every body that the application makes up looks like at an offset.
pub fn pattern_byte(offset: u64) u8 {
    return @truncate(offset ^ (offset >> 8) *% 7);
}

pub fn fill_pattern(bytes: []u8, offset: u64) void {
    for (bytes, offset..) |*byte, at| byte.* = pattern_byte(at);
}

/// A response that is made in pieces; what a parked one goes on from.
const Stream = struct {
    pieces_left: u32,
    piece_bytes: usize,
    pause_ms: u32 = 0,
    /// After each piece it waits so long for an event of its own; 0: it does not.
    suspend_ms: u32 = 0,
    length: ?u64 = null,
    offset: u64 = 0,
    piece: []u8 = &.{},
    next: ?*Stream = null,
    /// Before each piece it waits for an event; the piece says how the wait ended.
    waits: ?Wait = null,
    is_suspended: bool = false,
    head: ?ResponseHead = null,

    fn deinit(self: *Stream) void {
        gpa.free(self.piece);
        if (self.head) |*head| head.deinit();
    }
};

/// What a suspended response waits for beside its time; 0 milliseconds stand for no time.
const Wait = struct { timeout_ms: u32, event: Event };

const Event = enum(u32) {
    /// Nothing: only its time.
    none,
    /// `App.wake_one`, on any thread.
    wake,
    /// It has come before the response parks.
    early,
    /// A descriptor, which `App.wake_one` makes readable.
    descriptor,
    /// A descriptor that the test gave.
    shared,
};

/// What `App.wake_one` does: a reference of its own, and a descriptor of its own.
const Waker = struct { suspension: *Suspension, peer: sys.Fd };

const Trouble = reply_module.FinishError || body_module.ReadError || error{Raised};

/// Answers by the path: see `dispatch`.
pub const App = struct {
    /// Handlers of "/gate" wait for it.
    gate: std.Thread.ResetEvent = .{},
    at_gate: std.atomic.Value(u32) = .init(0),
    /// Handlers of "/gone" that saw their client leave.
    gone: std.atomic.Value(u32) = .init(0),
    calls: std.atomic.Value(u32) = .init(0),
    parks: std.atomic.Value(u32) = .init(0),
    abandoned: std.atomic.Value(u32) = .init(0),
    faults: std.atomic.Value(u32) = .init(0),
    /// Parked responses; with the GIL.
    parked: ?*Stream = null,
    parked_count: u32 = 0,
    /// How suspended responses can be woken, under a lock of their own.
    wakers: std.ArrayList(Waker) = .empty,
    wakers_mutex: std.Thread.Mutex = .{},
    suspensions: std.atomic.Value(u32) = .init(0),
    /// For responses that wait for a descriptor of the test's.
    shared: sys.Fd = sys.no_fd,

    fn of(context: *anyopaque) *App {
        return @ptrCast(@alignCast(context));
    }

    fn handle(context: *anyopaque, crew: *Crew) void {
        const self = of(context);
        self.check_entry();
        _ = self.calls.fetchAdd(1, .monotonic);
        self.dispatch(crew) catch |err| give_up(crew, err);
        if (!holds_gil) self.fault();
    }

    fn proceed(context: *anyopaque, crew: *Crew, continuation: *anyopaque) void {
        const self = of(context);
        self.check_entry();
        const stream: *Stream = @ptrCast(@alignCast(continuation));
        self.unlink(stream);
        if (crew.connection.worker) |own| if (own != &crew.worker) self.fault();
        defer gpa.destroy(stream);
        if (stream.head) |head| crew.reply.put_head(head);
        stream.head = null;
        stream.deinit();
        stream.piece = &.{};
        if (crew.connection.abandoned) {
            _ = self.abandoned.fetchAdd(1, .monotonic);
            if (!crew.reply.progress.broken) self.fault();
        }
        self.advance(crew, stream.*) catch |err| give_up(crew, err);
    }

    /// Wakes one suspended response, the oldest or any; false where none is to be woken. Any
    /// thread.
    pub fn wake_one(self: *App, server: *Server, number: usize) bool {
        self.wakers_mutex.lock();
        const count = self.wakers.items.len;
        const waker = if (count > 0) self.wakers.orderedRemove(number % count) else null;
        self.wakers_mutex.unlock();
        const found = waker orelse return false;
        if (found.peer != sys.no_fd) {
            _ = sys.send(found.peer, "x") catch {};
            sys.close(found.peer);
        } else server.resume_suspended(found.suspension);
        found.suspension.release(gpa);
        return true;
    }

    fn check_entry(self: *App) void {
        if (!holds_gil) self.fault();
    }

    fn fault(self: *App) void {
        _ = self.faults.fetchAdd(1, .monotonic);
    }

    /// As the bridge to Python does it: 500 while that is possible.
    fn give_up(crew: *Crew, err: Trouble) void {
        const reply = &crew.reply;
        const progress = &reply.progress;
        if (progress.head_sent or progress.broken) {
            if (!progress.finished) reply.abort();
            return;
        }
        answer_500(reply, @errorName(err)) catch reply.abort();
    }

    fn answer_500(reply: *reply_module.Reply, text: []const u8) Trouble!void {
        try reply.start("500 Internal Server Error");
        reply.progress.must_close = true;
        try reply.write(text, text.len);
        try reply.finish();
    }

    /// "/name/first/second/third", the parts being numbers.
    fn dispatch(self: *App, crew: *Crew) Trouble!void {
        const exchange = crew.exchange;
        const path = exchange.head.path.of(exchange.bytes);
        var parts = std.mem.splitScalar(u8, path, '/');
        _ = parts.next();
        const name = parts.next() orelse "";
        const first, const second, const third, const fourth = numbers_of(parts.rest());
        const kind = std.meta.stringToEnum(Kind, name) orelse .missing;
        switch (kind) {
            .small => try answer(crew, "200 OK", "hello"),
            .missing => try answer(crew, "404 Not Found", "?"),
            .none => try answer(crew, "204 No Content", ""),
            .sleep => {
                pause(first);
                try answer(crew, "200 OK", "slept");
            },
            .spin => {
                spin(first);
                try answer(crew, "200 OK", "spun");
            },
            .gate => {
                self.wait_at_gate();
                try answer(crew, "200 OK", "passed");
            },
            .hold => {
                // As a C extension that does not give the GIL away.
                _ = self.at_gate.fetchAdd(1, .release);
                self.gate.timedWait(2 * patience_ms * std.time.ns_per_ms) catch self.fault();
                try answer(crew, "200 OK", "held");
            },
            .gone => try self.watch_client(crew),
            .echo => try echo(crew),
            .count => try count_body(crew),
            .large => try self.begin_stream(crew, .{
                .pieces_left = 1,
                .piece_bytes = first,
                .length = first,
            }),
            .stream => try self.begin_stream(crew, .{
                .pieces_left = first,
                .piece_bytes = second,
                .pause_ms = third,
            }),
            .@"suspend" => try self.begin_stream(crew, .{
                .pieces_left = first,
                .piece_bytes = second,
                .suspend_ms = third,
            }),
            .own => {
                crew.connection.worker = &crew.worker;
                try self.begin_stream(crew, .{ .pieces_left = first, .piece_bytes = second });
            },
            .wait => try self.begin_stream(crew, .{
                .pieces_left = first,
                .piece_bytes = second,
                .waits = .{ .timeout_ms = third, .event = @enumFromInt(@min(fourth, 4)) },
            }),
            .write => try write_pieces(crew, first, second),
            .file => try self.send_file(crew, first, second, third),
            .fail => return error.Raised,
            .broken => {
                try crew.reply.start("200 OK");
                try crew.reply.write("partial", null);
                return error.Raised;
            },
            .short => try self.lengthy(crew, first + 10, first),
            .long => try self.lengthy(crew, first, first + 10),
            .late => try self.late(crew),
        }
    }

    fn numbers_of(text: []const u8) [4]u32 {
        var parts = std.mem.splitScalar(u8, text, '/');
        var numbers: [4]u32 = @splat(0);
        for (&numbers) |*number| {
            number.* = std.fmt.parseInt(u32, parts.next() orelse break, 10) catch 0;
        }
        return numbers;
    }

    const Kind = enum {
        /// Five bytes at once.
        small,
        missing,
        none,
        /// Milliseconds without the GIL, or with it.
        sleep,
        spin,
        /// Until the test lets it go, without the GIL, or with it.
        gate,
        hold,
        /// Until the client leaves.
        gone,
        echo,
        /// The length of the request body and whether it is the pattern.
        count,
        /// Bytes in one piece of known length.
        large,
        /// Pieces, bytes of each, milliseconds before each.
        stream,
        /// Pieces, bytes of each, milliseconds of parking after each; every other is resumed
        /// before.
        @"suspend",
        /// As `stream`, to go on with the worker that began it.
        own,
        /// Pieces, bytes of each, milliseconds and event to wait for before each.
        wait,
        /// As `stream`, through `write`, which waits for the client.
        write,
        /// A file of so many bytes from an offset on, which says that it has so many more.
        file,
        fail,
        broken,
        /// Less, or more, than its own Content-Length.
        short,
        long,
        /// Begins its response, then reads the request body.
        late,
    };

    fn answer(crew: *Crew, status: []const u8, text: []const u8) Trouble!void {
        try crew.reply.start(status);
        try crew.reply.write(text, text.len);
        try crew.reply.finish();
    }

    fn wait_at_gate(self: *App) void {
        const state = leave();
        defer enter(state);
        _ = self.at_gate.fetchAdd(1, .release);
        self.gate.timedWait(2 * patience_ms * std.time.ns_per_ms) catch self.fault();
    }

    fn watch_client(self: *App, crew: *Crew) Trouble!void {
        _ = self.at_gate.fetchAdd(1, .release);
        for (0..patience_ms) |_| {
            if (crew.connection.client_has_gone()) {
                _ = self.gone.fetchAdd(1, .release);
                break;
            }
            pause(1);
        }
        try answer(crew, "200 OK", "gone");
    }

    fn echo(crew: *Crew) Trouble!void {
        var all: std.ArrayList(u8) = .empty;
        defer all.deinit(gpa);
        var buffer: [5000]u8 = undefined;
        while (true) {
            const count = try crew.read_body(&buffer);
            if (count == 0) break;
            try all.appendSlice(gpa, buffer[0..count]);
        }
        try crew.reply.start("200 OK");
        try crew.reply.write(all.items, all.items.len);
        try crew.reply.finish();
    }

    fn count_body(crew: *Crew) Trouble!void {
        var buffer: [30_000]u8 = undefined;
        var total: u64 = 0;
        var is_pattern = true;
        while (true) {
            const count = try crew.read_body(&buffer);
            if (count == 0) break;
            for (buffer[0..count], total..) |byte, at| {
                if (byte != pattern_byte(at)) is_pattern = false;
            }
            total += count;
        }
        var text: [64]u8 = undefined;
        const word = if (is_pattern) "intact" else "spoiled";
        try answer(crew, "200 OK", std.fmt.bufPrint(&text, "{d} {s}", .{ total, word }) catch "");
    }

    fn late(self: *App, crew: *Crew) Trouble!void {
        try crew.reply.start("200 OK");
        try crew.reply.write("begun ", null);
        _ = self.at_gate.fetchAdd(1, .release);
        var buffer: [100]u8 = undefined;
        const count = try crew.read_body(&buffer);
        try crew.reply.write(buffer[0..count], null);
        try crew.reply.finish();
    }

    fn write_pieces(crew: *Crew, pieces: u32, piece_bytes: usize) Trouble!void {
        try crew.reply.start("200 OK");
        var offset: u64 = 0;
        for (0..pieces) |_| {
            const piece = try gpa.alloc(u8, piece_bytes);
            defer gpa.free(piece);
            fill_pattern(piece, offset);
            offset += piece_bytes;
            try crew.reply.write(piece, null);
        }
        try crew.reply.finish();
    }

    fn send_file(self: *App, crew: *Crew, size: u32, offset: u32, missing: u32) Trouble!void {
        try crew.reply.start("200 OK");
        const bytes = try gpa.alloc(u8, size);
        defer gpa.free(bytes);
        fill_pattern(bytes, 0);
        const fd = sys.open_unlinked("/tmp") catch return error.Raised;
        sys.write_all_at(fd, bytes, 0) catch {
            sys.close(fd);
            return error.Raised;
        };
        const remaining = size + missing - offset;
        const part: FilePart = .{ .fd = fd, .offset = offset, .remaining = remaining };
        if (try crew.reply.offer_file(part) == .full) {
            return self.park(crew, .{ .pieces_left = 0, .piece_bytes = 0 });
        }
        try crew.reply.finish();
    }

    /// A Content-Length of `said`, in one piece of `given` bytes.
    fn lengthy(self: *App, crew: *Crew, said: u32, given: u32) Trouble!void {
        var text: [16]u8 = undefined;
        try crew.reply.start("200 OK");
        const length = std.fmt.bufPrint(&text, "{d}", .{said}) catch unreachable;
        try crew.reply.head.add("Content-Length", length);
        return self.advance(crew, .{ .pieces_left = 1, .piece_bytes = given });
    }

    fn begin_stream(self: *App, crew: *Crew, given: Stream) Trouble!void {
        try crew.reply.start("200 OK");
        return self.advance(crew, given);
    }

    /// Goes on until the response is finished or the client is too far behind.
    fn advance(self: *App, crew: *Crew, given: Stream) Trouble!void {
        var now = given;
        while (now.pieces_left > 0) {
            if (crew.reply.progress.broken) return error.ClientGone;
            if (now.waits) |wait| if (!now.is_suspended) return self.suspend_it(crew, now, wait);
            now.is_suspended = false;
            if (now.pause_ms > 0) pause(now.pause_ms);
            now.pieces_left -= 1;
            if (try give_piece(crew, &now) == .full) return self.park(crew, now);
            if (now.suspend_ms > 0 and now.pieces_left > 0) return self.park_for_event(crew, now);
        }
        try crew.reply.finish();
    }

    /// A piece that is still in use is left in `now`.
    fn give_piece(crew: *Crew, now: *Stream) Trouble!reply_module.Flow {
        const piece = try gpa.alloc(u8, now.piece_bytes);
        errdefer gpa.free(piece);
        fill_pattern(piece, now.offset);
        if (now.waits != null) @memset(piece, if (crew.reply.progress.timed_out) 't' else 'r');
        now.offset += piece.len;
        const flow = try crew.reply.offer(piece, now.length);
        if (flow == .full) now.piece = piece else gpa.free(piece);
        return flow;
    }

    fn suspend_it(self: *App, crew: *Crew, given: Stream, wait: Wait) Trouble!void {
        var now = given;
        now.is_suspended = true;
        const timeout: ?u64 = if (wait.timeout_ms > 0) wait.timeout_ms else null;
        const suspension = try Suspension.create(gpa, crew.connection.token(), timeout);
        errdefer suspension.release(gpa);
        switch (wait.event) {
            .none => {},
            .wake => try self.add_waker(suspension, sys.no_fd),
            .early => crew.server.resume_suspended(suspension),
            .descriptor => {
                const pair = sys.socket_pair() catch return error.Raised;
                suspension.watched = pair[0];
                try self.add_waker(suspension, pair[1]);
            },
            .shared => suspension.watched = sys.duplicate(self.shared) orelse return error.Raised,
        }
        crew.reply.push();
        crew.connection.worker = &crew.worker;
        now.head = crew.reply.take_head();
        try self.park(crew, now);
        crew.exchange.suspension = suspension;
        _ = self.suspensions.fetchAdd(1, .release);
    }

    fn add_waker(self: *App, suspension: *Suspension, peer: sys.Fd) error{OutOfMemory}!void {
        self.wakers_mutex.lock();
        defer self.wakers_mutex.unlock();
        try self.wakers.append(gpa, .{ .suspension = suspension.retain(), .peer = peer });
    }

    fn park_for_event(self: *App, crew: *Crew, now: Stream) Trouble!void {
        const server = crew.server;
        const token = crew.connection.token();
        const suspension = try Suspension.create(server.gpa, token, now.suspend_ms);
        crew.exchange.suspension = suspension;
        try self.park(crew, now);
        if (now.pieces_left % 2 == 0) server.resume_suspended(suspension);
    }

    fn park(self: *App, crew: *Crew, now: Stream) Trouble!void {
        const stream_kept = try gpa.create(Stream);
        stream_kept.* = now;
        stream_kept.next = self.parked;
        self.parked = stream_kept;
        self.parked_count += 1;
        _ = self.parks.fetchAdd(1, .release);
        crew.reply.park(stream_kept);
    }

    fn unlink(self: *App, wanted: *Stream) void {
        var link = &self.parked;
        while (link.*) |entry| : (link = &entry.next) {
            if (entry != wanted) continue;
            link.* = entry.next;
            self.parked_count -= 1;
            return;
        }
        self.fault();
    }

    fn pause(duration_ms: u32) void {
        const state = leave();
        defer enter(state);
        sys.sleep_ms(duration_ms);
    }

    fn spin(duration_ms: u32) void {
        const end = sys.monotonic_ns() + @as(u64, duration_ms) * std.time.ns_per_ms;
        while (sys.monotonic_ns() < end) std.atomic.spinLoopHint();
    }
};

// ---- The server --------------------------------------------------------------------------------

pub const Setup = struct {
    options: server_module.Options = .{},
    /// Of the accepted sockets, so that a response soon fills them.
    send_buffer_bytes: ?c_int = null,
    family: Family = .tcp,
    /// What the server's threads meet of faults.
    plan: ?*kernel.Plan = null,
};

pub const Family = enum { tcp, unix };

pub const Fixture = struct {
    app: App = .{},
    server: *Server,
    threads: []std.Thread,
    address: std.net.Address,
    plan: ?*kernel.Plan,
    descriptors_before: usize,
    mapped_before: usize,
    is_over: bool = false,

    pub fn start(setup: Setup) !*Fixture {
        const self = try gpa.create(Fixture);
        errdefer gpa.destroy(self);
        const descriptors_before = count_descriptors();
        var listener: sys.Fd = undefined;
        const address = try open_listener(setup, &listener);
        self.* = .{
            .server = undefined,
            .threads = &.{},
            .address = address,
            .plan = setup.plan,
            .descriptors_before = descriptors_before,
            .mapped_before = kernel.mapped_bytes.load(.monotonic),
        };
        errdefer sys.close(listener);
        self.server = try Server.create(kernel.allocator, setup.options, &.{.{ .fd = listener }}, .{
            .context = &self.app,
            .handle = App.handle,
            .proceed = App.proceed,
            .interlude = interlude,
        });
        return self;
    }

    /// The server with its threads running.
    pub fn serve(setup: Setup) !*Fixture {
        const self = try start(setup);
        errdefer self.deinit();
        try self.run();
        return self;
    }

    pub fn run(self: *Fixture) !void {
        try self.begin();
        self.server.attended.set();
    }

    /// Starts the threads, which wait for the launcher.
    pub fn begin(self: *Fixture) !void {
        self.threads = try gpa.alloc(std.Thread, self.server.worker_count());
        for (self.threads, 0..) |*thread, number| {
            thread.* = try std.Thread.spawn(.{ .stack_size = 1024 * 1024 }, work, .{
                self,
                @as(u32, @intCast(number)),
            });
        }
        // So that what a test counts of them does not change under it.
        const count = self.server.worker_count();
        for (0..20_000) |_| {
            if (self.server.crews_begun.load(.monotonic) == count) return;
            sys.sleep_ms(1);
        }
        return error.NotBegun;
    }

    fn work(self: *Fixture, number: u32) void {
        kernel.arm(self.plan);
        enter(null);
        self.server.run_worker(number);
        _ = leave();
    }

    pub fn outcome(self: *Fixture) server_module.Outcome {
        return self.server.outcome.load(.acquire);
    }

    /// Drains. Everything must be given back and in time.
    pub fn finish(self: *Fixture) !void {
        self.server.drain();
        try self.expect_end(.drained);
    }

    /// Waits for the end and checks that nothing is left of connections and requests.
    pub fn expect_end(self: *Fixture, expected: server_module.Outcome) !void {
        const pipe = self.server.outcome_pipe[0];
        var ended = false;
        while (sys.wait_ready(pipe, .readable, patience_ms)) {
            ended = self.outcome() != .serving;
            if (ended) break;
            // The launcher was told something else.
            var told: [16]u8 = undefined;
            _ = sys.recv(pipe, &told) catch {};
        }
        self.app.gate.set();
        const seen = self.outcome();
        self.join();
        const server = self.server;
        const connections = server.connection_count.load(.monotonic);
        const slots = server.poller.slots.in_use;
        const exchanges = server.pool.in_use;
        const parked = self.app.parked_count;
        const buffered = server.buffer_memory.total();
        self.destroy();
        try testing.expectEqual(self.mapped_before, kernel.mapped_bytes.load(.monotonic));
        try testing.expect(ended);
        try testing.expectEqual(expected, seen);
        try testing.expectEqual(0, self.app.faults.load(.monotonic));
        if (expected != .drained) return;
        try testing.expectEqual(0, connections);
        try testing.expectEqual(0, slots);
        try testing.expectEqual(0, exchanges);
        try testing.expectEqual(0, parked);
        try testing.expectEqual(0, buffered);
    }

    /// Whatever the test came to. After the clients have been closed, lest they count as leaks.
    pub fn deinit(self: *Fixture) void {
        if (!self.is_over) {
            self.app.gate.set();
            self.join();
            self.destroy();
        }
        gpa.destroy(self);
    }

    /// Every descriptor is given back; for a test whose clients are closed.
    pub fn expect_no_descriptors(self: *Fixture) !void {
        try testing.expectEqual(self.descriptors_before, count_descriptors());
    }

    fn join(self: *Fixture) void {
        self.server.stop();
        for (self.threads) |thread| thread.join();
        gpa.free(self.threads);
        self.threads = &.{};
    }

    fn destroy(self: *Fixture) void {
        self.is_over = true;
        while (self.app.wake_one(self.server, 0)) {}
        self.app.wakers.deinit(gpa);
        self.server.destroy();
        while (self.app.parked) |stream| {
            self.app.parked = stream.next;
            stream.deinit();
            gpa.destroy(stream);
        }
        if (self.address.any.family == c.AF.UNIX) {
            _ = c.unlink(@ptrCast(&self.address.un.path));
        }
    }

    pub const Count = enum { connections, requests, running, queued, parked, shed, steals };

    /// Waits until a count of the server is `expected`.
    pub fn expect_count(self: *Fixture, comptime what: Count, expected: u64) !void {
        for (0..patience_ms) |_| {
            if (@field(self.server.counts(), @tagName(what)) == expected) return;
            sys.sleep_ms(1);
        }
        try testing.expectEqual(expected, @field(self.server.counts(), @tagName(what)));
    }

    /// Waits until the poller has seen bytes on the first connection while a worker has it.
    pub fn expect_readable_seen(self: *Fixture) !void {
        const connection = &self.server.poller.slots.connections[0];
        for (0..patience_ms) |_| {
            if (connection.turn.load(.acquire) & Turn.readable != 0) return;
            sys.sleep_ms(1);
        }
        return error.NotSeen;
    }

    /// Waits until no worker has the connection in this slot: an answer that has come whole may
    /// still be its worker's, and only then is the connection idle.
    pub fn expect_handed_back(self: *Fixture, slot: usize) !void {
        const connection = &self.server.poller.slots.connections[slot];
        for (0..patience_ms) |_| {
            if (connection.turn.load(.acquire) & Turn.worker == 0) return;
            sys.sleep_ms(1);
        }
        return error.NotHandedBack;
    }

    /// Waits until one of the application's counters is at least `expected`.
    pub fn expect_app(self: *Fixture, comptime counter: []const u8, expected: u32) !void {
        for (0..patience_ms) |_| {
            if (@field(self.app, counter).load(.acquire) >= expected) return;
            sys.sleep_ms(1);
        }
        try testing.expectEqual(expected, @field(self.app, counter).load(.acquire));
    }

    pub fn connect(self: *Fixture) !Client {
        return self.connect_with(null);
    }

    pub fn connect_with(self: *Fixture, receive_buffer_bytes: ?c_int) !Client {
        return connect_to(&self.address, receive_buffer_bytes);
    }
};

/// A client of any listener.
pub fn connect_to(address: *const std.net.Address, receive_buffer_bytes: ?c_int) !Client {
    const family = address.any.family;
    const fd = try std.posix.socket(family, c.SOCK.STREAM | c.SOCK.CLOEXEC, 0);
    errdefer sys.close(fd);
    if (receive_buffer_bytes) |bytes| narrow(fd, family, bytes);
    const limit: c.timeval = .{ .sec = 8, .usec = 0 };
    for ([_]u32{ c.SO.RCVTIMEO, c.SO.SNDTIMEO }) |option| {
        _ = c.setsockopt(fd, c.SOL.SOCKET, option, &limit, @sizeOf(c.timeval));
    }
    try std.posix.connect(fd, &address.any, address.getOsSockLen());
    if (family != c.AF.UNIX) sys.set_no_delay(fd);
    return .{ .fd = fd };
}

/// Makes a socket take little at a time. Its segments have to be smaller than the window that the
/// buffer leaves, or the sender, once it has shrunk the window, waits for its persist timer before
/// each: a fifth of a second for two kilobytes (RFC 1122 4.2.3.4), and a test takes minutes.
fn narrow(fd: sys.Fd, family: c.sa_family_t, bytes: c_int) void {
    set_buffer(fd, c.SO.RCVBUF, bytes);
    if (family == c.AF.UNIX) return;
    const tcp_maxseg = 2;
    const segment_bytes: c_int = 536;
    _ = c.setsockopt(fd, c.IPPROTO.TCP, tcp_maxseg, &segment_bytes, @sizeOf(c_int));
}

fn set_buffer(fd: sys.Fd, option: u32, bytes: c_int) void {
    _ = c.setsockopt(fd, c.SOL.SOCKET, option, &bytes, @sizeOf(c_int));
}

var unix_count: u32 = 0;

pub fn open_listener(setup: Setup, listener: *sys.Fd) !std.net.Address {
    var address = switch (setup.family) {
        .tcp => try std.net.Address.parseIp("127.0.0.1", 0),
        .unix => blk: {
            var path: [80]u8 = undefined;
            unix_count += 1;
            break :blk try std.net.Address.initUnix(try std.fmt.bufPrint(
                &path,
                "/tmp/serve-zig-test-{d}-{d}.socket",
                .{ c.getpid(), unix_count },
            ));
        },
    };
    const kind = c.SOCK.STREAM | c.SOCK.CLOEXEC | c.SOCK.NONBLOCK;
    const fd = try std.posix.socket(address.any.family, kind, 0);
    errdefer sys.close(fd);
    // Accepted sockets inherit it.
    if (setup.send_buffer_bytes) |bytes| set_buffer(fd, c.SO.SNDBUF, bytes);
    var length = address.getOsSockLen();
    try std.posix.bind(fd, &address.any, length);
    try std.posix.getsockname(fd, &address.any, &length);
    try std.posix.listen(fd, 512);
    listener.* = fd;
    return address;
}

/// Descriptors that the process has open.
pub fn count_descriptors() usize {
    var count: usize = 0;
    for (0..1024) |fd| {
        if (c.fcntl(@intCast(fd), c.F.GETFD, @as(c_int, 0)) >= 0) count += 1;
    }
    return count;
}

// ---- Clients -----------------------------------------------------------------------------------

pub const Response = struct {
    status: u16,
    head: []u8,
    body: []u8,
    closes: bool,

    pub fn deinit(self: *const Response) void {
        gpa.free(self.head);
        gpa.free(self.body);
    }

    pub fn field(self: *const Response, name: []const u8) ?[]const u8 {
        var lines = std.mem.splitSequence(u8, self.head, "\r\n");
        while (lines.next()) |line| {
            const colon = std.mem.indexOfScalar(u8, line, ':') orelse continue;
            if (!std.ascii.eqlIgnoreCase(line[0..colon], name)) continue;
            return std.mem.trim(u8, line[colon + 1 ..], " ");
        }
        return null;
    }
};

pub const ClientError = error{
    TimedOut,
    Reset,
    /// The server closed before the response's end.
    Ended,
    BadResponse,
    OutOfMemory,
};

/// A response that goes on coming may take so long, on a busy machine too.
const response_ms_max = 40_000;

/// A blocking socket with timeouts, and what it received beyond the last response.
pub const Client = struct {
    fd: sys.Fd,
    received: std.ArrayList(u8) = .empty,
    /// When the response that is waited for must have come whole.
    response_end_ms: u64 = std.math.maxInt(u64),

    pub fn close(self: *Client) void {
        if (self.fd != sys.no_fd) sys.close(self.fd);
        self.fd = sys.no_fd;
        self.received.deinit(gpa);
        self.received = .empty;
    }

    /// Closes so that the server sees the connection broken.
    pub fn reset(self: *Client) void {
        const option: extern struct { on: c_int, seconds: c_int } = .{ .on = 1, .seconds = 0 };
        _ = c.setsockopt(self.fd, c.SOL.SOCKET, c.SO.LINGER, &option, @sizeOf(@TypeOf(option)));
        self.close();
    }

    pub fn send(self: *Client, bytes: []const u8) ClientError!void {
        var done: usize = 0;
        while (done < bytes.len) {
            done += sys.send(self.fd, bytes[done..]) catch |err| return switch (err) {
                error.WouldBlock => error.TimedOut,
                else => error.Reset,
            };
        }
    }

    pub fn get(self: *Client, path: []const u8) ClientError!void {
        var storage: [256]u8 = undefined;
        const text = "GET {s} HTTP/1.1\r\nHost: test\r\n\r\n";
        return self.send(std.fmt.bufPrint(&storage, text, .{path}) catch unreachable);
    }

    pub fn half_close(self: *Client) void {
        sys.shutdown_send(self.fd);
    }

    fn receive_more(self: *Client) ClientError!void {
        if (sys.monotonic_ms() > self.response_end_ms) return error.TimedOut;
        var buffer: [16 * 1024]u8 = undefined;
        const count = sys.recv(self.fd, &buffer) catch |err| return switch (err) {
            error.WouldBlock => error.TimedOut,
            else => error.Reset,
        };
        if (count == 0) return error.Ended;
        try self.received.appendSlice(gpa, buffer[0..count]);
    }

    fn take(self: *Client, destination: *std.ArrayList(u8), count: usize) ClientError!void {
        while (self.received.items.len < count) try self.receive_more();
        try destination.appendSlice(gpa, self.received.items[0..count]);
        self.drop(count);
    }

    fn drop(self: *Client, count: usize) void {
        self.received.replaceRangeAssumeCapacity(0, count, "");
    }

    fn take_line(self: *Client, destination: *std.ArrayList(u8), end: []const u8) ClientError!void {
        while (true) {
            if (std.mem.indexOf(u8, self.received.items, end)) |at| {
                return self.take(destination, at + end.len);
            }
            try self.receive_more();
        }
    }

    pub fn response(self: *Client) ClientError!Response {
        return self.response_to("GET");
    }

    /// The next response, interim ones included.
    pub fn response_to(self: *Client, method: []const u8) ClientError!Response {
        self.response_end_ms = sys.monotonic_ms() + response_ms_max;
        defer self.response_end_ms = std.math.maxInt(u64);
        var head: std.ArrayList(u8) = .empty;
        errdefer head.deinit(gpa);
        try self.take_line(&head, "\r\n\r\n");
        if (head.items.len < 12) return error.BadResponse;
        var answer: Response = .{
            .status = std.fmt.parseInt(u16, head.items[9..12], 10) catch return error.BadResponse,
            .head = head.items,
            .body = &.{},
            .closes = false,
        };
        answer.closes = if (answer.field("connection")) |value|
            std.ascii.eqlIgnoreCase(value, "close")
        else
            false;
        var body: std.ArrayList(u8) = .empty;
        errdefer body.deinit(gpa);
        const has_none = answer.status < 200 or answer.status == 204 or answer.status == 304 or
            std.mem.eql(u8, method, "HEAD");
        if (!has_none) try self.take_body(&answer, &body);
        answer.head = try head.toOwnedSlice(gpa);
        errdefer gpa.free(answer.head);
        answer.body = try body.toOwnedSlice(gpa);
        return answer;
    }

    fn take_body(self: *Client, answer: *Response, body: *std.ArrayList(u8)) ClientError!void {
        if (answer.field("content-length")) |text| {
            const length = std.fmt.parseInt(usize, text, 10) catch return error.BadResponse;
            return self.take(body, length);
        }
        if (answer.field("transfer-encoding") != null) return self.take_chunks(body);
        while (true) self.receive_more() catch |err| {
            if (err != error.Ended) return err;
            return self.take(body, self.received.items.len);
        };
    }

    fn take_chunks(self: *Client, body: *std.ArrayList(u8)) ClientError!void {
        while (true) {
            var line: std.ArrayList(u8) = .empty;
            defer line.deinit(gpa);
            try self.take_line(&line, "\r\n");
            const digits = line.items[0 .. line.items.len - 2];
            const size = std.fmt.parseInt(usize, digits, 16) catch return error.BadResponse;
            try self.take(body, size);
            line.clearRetainingCapacity();
            try self.take(&line, 2);
            if (!std.mem.eql(u8, line.items, "\r\n")) return error.BadResponse;
            if (size == 0) return;
        }
    }

    pub fn expect(self: *Client, status: u16, body: []const u8) !void {
        const answer = try self.response();
        defer answer.deinit();
        try testing.expectEqual(status, answer.status);
        try testing.expectEqualStrings(body, answer.body);
    }

    pub fn expect_status(self: *Client, status: u16) !void {
        const answer = try self.response();
        defer answer.deinit();
        try testing.expectEqual(status, answer.status);
    }

    /// A response whose body is `length` bytes of the pattern.
    pub fn expect_pattern(self: *Client, length: usize) !void {
        const answer = try self.response();
        defer answer.deinit();
        try testing.expectEqual(200, answer.status);
        try testing.expectEqual(length, answer.body.len);
        for (answer.body, 0..) |byte, at| {
            if (byte != pattern_byte(at)) return error.SpoiledBody;
        }
    }

    /// Nothing more comes and the connection ends in order.
    pub fn expect_end(self: *Client) !void {
        try testing.expectEqual(0, self.received.items.len);
        try testing.expectError(error.Ended, self.receive_more());
    }

    /// Nothing comes for a while.
    pub fn expect_silence(self: *Client, duration_ms: u64) !void {
        try testing.expectEqual(0, self.received.items.len);
        try testing.expect(!sys.wait_ready(self.fd, .readable, duration_ms));
    }

    pub fn ask(self: *Client, path: []const u8, status: u16, body: []const u8) !void {
        try self.get(path);
        try self.expect(status, body);
    }
};
