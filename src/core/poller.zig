//! What the holder of the baton does: accept, receive, parse, send what was left over, time out.
//!
//! Everything here belongs to whichever thread holds the baton; the scheduler's mutex carries it
//! from one to the next. No Python, no GIL, nothing that blocks but the reactor's poll. Descriptors
//! are closed and slots recycled at the end of a batch of events, so that no event of the batch
//! speaks of another connection than it did when it came.

const std = @import("std");
const forks = @import("forks.zig");
const sys = @import("sys.zig");
const pages = @import("pages.zig");
const predictor = @import("predictor.zig");
const forwarded = @import("forwarded.zig");
const proxy_header = @import("proxy_header.zig");
const date_module = @import("date.zig");
const refusal_module = @import("refusal.zig");
const request_head = @import("request_head.zig");
const reactor_module = @import("reactor.zig");
const deadlines_module = @import("deadlines.zig");
const connection_module = @import("connection.zig");
const eviction = @import("eviction.zig");
const body_module = @import("body.zig");
const suspension_module = @import("suspension.zig");
const exchange_module = @import("exchange.zig");
const Probe = @import("health.zig").Probe;
const metrics_module = @import("metrics.zig");
const notices_module = @import("notices.zig");
const observer = @import("observer.zig");
const overdue = @import("overdue.zig");
const response_head = @import("response_head.zig");
const StaticFiles = @import("static.zig").StaticFiles;
const Server = @import("server.zig").Server;
const Connection = connection_module.Connection;
const Exchange = exchange_module.Exchange;
const Suspension = suspension_module.Suspension;
const Slots = connection_module.Slots;
const Turn = connection_module.Turn;
const Phase = @import("timing.zig").Phase;

/// Most listeners; `Connection.listener` counts them.
pub const listeners_max = 64;
/// How long a client that was refused may take to read why; anew with each byte of the body that it
/// still sends, since many read only when they have sent all, and so long altogether.
const linger_ms = 2000;
const linger_ms_max = 30_000;
/// Of one client's output at a time: the others wait meanwhile.
const turn_bytes_max = 2 * 1024 * 1024;
/// A pipelined request waits until nobody else has asked for so long: long enough for a client on
/// the same machine to ask again, and little beside what a network takes ...
const quiet_ns = 50 * std.time.ns_per_us;
/// ... or at the most for so long.
const pipelined_wait_ns = 1 * std.time.ns_per_ms;
/// How long to wait for descriptors after the kernel had none, if no connection closes before.
const accept_pause_ms = 100;
/// Tokens of listeners have this bit; those of connections have neither (a generation has 30 bits).
const listener_bit: u64 = 1 << 63;
/// Tokens of descriptors that a suspended response waits for: the connection's, with this bit.
const watch_bit: u64 = 1 << 62;
/// How long a client that has closed its sending side may still wait for a response that is
/// suspended, or that has nothing to say: it may have left, and nothing is sent that could show it.
pub const half_closed_ms = 250;

/// For how long after a drain begins handshakes that are under way may end; the round trip to a
/// client near by.
const arrival_ms = 5;
/// How long a drain leaves idle connections open: a request may be on its way.
const idle_grace_ms = 100;
/// How long a drain waits for clients to close after their last response.
const drain_linger_ms = 100;
/// How long a drain waits for the rest of requests that have begun to come.
const drain_receive_ms = 5000;
const late_head_ms = 1000;
/// Of a response, in the kernel, ahead of a client that does not read. Left alone the kernel takes
/// megabytes for each, and some thousand clients that read nothing take all the memory that the
/// system has for TCP; its pages cost time as well. A few connections cost less if nothing limits
/// them. What is on its way to a client does not count, so that this makes nobody slow.
const unsent_bytes_min = 64 * 1024;
/// What Linux takes by itself (tcp_wmem, tcp(7)).
const unsent_bytes_unlimited = 4 * 1024 * 1024;
/// So many connections are not limited.
const unlimited_connections = 32;

/// How much the next of so many connections may have; null for no limit. It falls with the square
/// of their number: those that were opened before keep theirs, and all of them together are to come
/// to the double of what the unlimited ones can have, and no more than `unsent_bytes_min` for each
/// beyond the 256th.
fn unsent_share(connections: u32) ?u32 {
    if (connections <= unlimited_connections) return null;
    const square = @as(u64, connections) * connections;
    const whole: u64 = unsent_bytes_unlimited * unlimited_connections * unlimited_connections;
    return @intCast(@max(unsent_bytes_min, whole / square));
}

test "the more connections there are, the less the kernel holds for each, and in all" {
    try std.testing.expectEqual(null, unsent_share(0));
    try std.testing.expectEqual(null, unsent_share(32));
    try std.testing.expectEqual(3_943_955, unsent_share(33));
    try std.testing.expectEqual(256 * 1024, unsent_share(128));
    try std.testing.expectEqual(64 * 1024, unsent_share(256));
    try std.testing.expectEqual(64 * 1024, unsent_share(1_000_000));
    var all: u64 = 0;
    for (0..256) |count| all += unsent_share(@intCast(count)) orelse unsent_bytes_unlimited;
    try std.testing.expect(all <= 2 * unlimited_connections * unsent_bytes_unlimited);
}

const Listener = struct {
    fd: sys.Fd,
    /// Another process accepts from it too, and goes on doing so.
    is_shared: bool,
    /// The kernel may hold connections that no new event will tell of.
    unread: bool = false,
};

/// A bound, listening socket, which the poller takes over.
pub const ListenerOptions = struct {
    fd: sys.Fd,
    /// Another process may have it too, such as the one that passed it on.
    is_shared: bool = false,
};

pub const Poller = struct {
    server: *Server,
    reactor: reactor_module.Reactor,
    slots: Slots,
    deadlines: deadlines_module.Deadlines,
    listeners: []Listener,
    head_limits: request_head.Limits,
    now_ms: u64,
    /// When the last batch of events came, by the precise clock.
    now_ns: u64 = 0,
    /// When a request of a client that does not pipeline came last, by `now_ns`.
    asked_ns: u64 = 0,
    /// Pipelined requests that let those of others go first, newest first, linked by `next_own`.
    pipelined: ?*Connection = null,
    /// Since when the oldest of them waits, by `now_ns`.
    pipelined_ns: u64 = 0,
    lane: observer.Lane,
    /// How many requests have begun; their ids count on.
    request_count: u64 = 0,
    date: date_module.Date = .{},
    draining: bool = false,
    /// Clients that take nothing of their responses.
    stalled: eviction.Stalled = .{},
    /// When every slot was looked at last and no connection was idle.
    nobody_idle_ms: u64 = 0,
    drain_began_ms: u64 = 0,
    drain_deadline_ms: u64 = 0,
    /// When a drain closes the listeners; null when they are closed, or before.
    arrivals_end_ms: ?u64 = null,
    /// When a drain closes the next of the idle connections.
    idle_end_ms: ?u64 = null,
    /// When the first application call can be overdue, if they have a time limit.
    overdue_ms: u64 = 0,
    /// No accepting before this: the process was out of descriptors.
    accept_after_ms: u64 = 0,
    /// Why clients wait in the backlog, if they do.
    accept_pause: ?metrics_module.Pause = null,
    /// Requests read in this batch, on their way to the ready queue.
    complete: [reactor_module.events_max]*Connection = undefined,
    complete_count: usize = 0,
    /// A parked response went back to its worker, who may be this thread.
    has_resumed: bool = false,
    /// Connections to close at the end of this batch.
    closing: ?*Connection = null,
    /// Null where there is no [[static]].
    static_files: ?*StaticFiles = null,
    /// Requests for files, newest first, linked by `next_own`.
    for_files: ?*Connection = null,
    events: [reactor_module.events_max]reactor_module.Event = undefined,
    scratch: []u8,

    const scratch_bytes = 64 * 1024;

    pub fn init(
        server: *Server,
        listeners: []const ListenerOptions,
    ) error{ OutOfMemory, Unexpected }!Poller {
        const gpa = server.gpa;
        var reactor = try reactor_module.Reactor.init();
        errdefer reactor.deinit();
        var slots = try Slots.init(server.options.connections);
        errdefer slots.deinit();
        var deadlines = try deadlines_module.Deadlines.init(server.options.connections);
        errdefer deadlines.deinit();
        const own = try gpa.alloc(Listener, listeners.len);
        errdefer gpa.free(own);
        const scratch = try pages.alloc(u8, scratch_bytes);
        errdefer pages.free(scratch);
        const tables = server.options.static;
        const static_files = if (tables.len > 0) try StaticFiles.create(gpa, tables) else null;
        errdefer if (static_files) |files| files.destroy();
        for (listeners, own, 0..) |given, *listener, index| {
            listener.* = .{ .fd = given.fd, .is_shared = given.is_shared };
            sys.set_nonblocking(given.fd);
            sys.set_no_delay(given.fd);
            try reactor.register(given.fd, listener_bit | index);
        }
        return .{
            .server = server,
            .reactor = reactor,
            .slots = slots,
            .deadlines = deadlines,
            .listeners = own,
            .head_limits = server.options.head_limits(),
            .now_ms = sys.monotonic_ms(),
            .lane = .{ .shard = server.metrics.poller_shard(), .line = server.line_of(0) },
            .scratch = scratch,
            .static_files = static_files,
        };
    }

    pub fn deinit(self: *Poller) void {
        const gpa = self.server.gpa;
        for (self.slots.touched()) |*connection| {
            if (connection.fd == sys.no_fd) continue;
            sys.close(connection.fd);
            if (connection.exchange) |exchange| self.server.pool.release(exchange);
        }
        self.close_listeners();
        gpa.free(self.listeners);
        pages.free(self.scratch);
        if (self.static_files) |files| files.destroy();
        self.deadlines.deinit();
        self.slots.deinit();
        self.reactor.deinit();
    }

    /// Waits for something to do, if it may, and does it. Returns when requests may have become
    /// ready, when the server stops, or for another reason of its own; the caller calls again.
    pub fn poll(self: *Poller, may_wait: bool) void {
        const server = self.server;
        // Nobody may have polled for a while.
        self.now_ms = sys.monotonic_ms();
        const looks_again = self.now_ms <= self.nobody_idle_ms;
        self.take_handed_back();
        self.take_resumed();
        if (server.drain_requested.load(.acquire) and !self.draining) self.begin_drain();
        if (self.draining) self.close_idle();
        // No batch of events is open here, so what the workers finished closes before the wait.
        self.close_marked();
        if (self.draining) self.end_drain();
        const has_work = self.complete_count > 0 or self.has_resumed or self.for_files != null;
        self.has_resumed = false;
        if (server.watches_stalled.load(.seq_cst)) self.stalled.watch(self);
        const timeout = if (has_work) 0 else self.timeout_ns(looks_again);
        const wants_idle = self.draining or self.is_waiting_for_room();
        // A worker that let go of a connection before this was to wake nobody for it: look again.
        if (!server.wants_idle.swap(wants_idle, .seq_cst) and wants_idle) self.nobody_idle_ms = 0;
        server.waiting.store(true, .seq_cst);
        const must_not_wait = !may_wait or server.handed_back.load(.seq_cst) != null or
            server.resumed.load(.seq_cst) != null or server.outcome.load(.seq_cst) != .serving or
            (self.stalled.look_ms == null and server.watches_stalled.load(.seq_cst)) or
            (self.is_waiting_for_room() and !self.is_full());
        const events = self.reactor.poll(&self.events, if (must_not_wait) 0 else timeout);
        server.waiting.store(false, .seq_cst);
        self.now_ns = sys.monotonic_ns();
        self.now_ms = self.now_ns / std.time.ns_per_ms;
        for (events) |event| self.on_event(event);
        if (self.pipelined != null) self.take_pipelined();
        if (!server.buffer_memory.has_room()) {
            server.notify(.buffers_full, &sys.no_address);
            self.stalled.relieve_buffers(self);
        }
        self.resume_accepting();
        self.expire();
        if (self.draining) self.close_idle();
        if (self.for_files != null) self.answer_files();
        self.submit();
        if (server.writers.count.load(.seq_cst) > 0) self.stalled.relieve_threads(self);
        self.close_marked();
        if (self.draining) self.end_drain();
    }

    /// Nanoseconds until something is to be done; null when nothing is to come.
    fn timeout_ns(self: *Poller, looks_again: bool) ?u64 {
        if (self.pipelined != null) return quiet_ns;
        // Who may have become idle since has not been looked for.
        if (looks_again and self.is_waiting_for_room()) return std.time.ns_per_ms;
        const ms = self.timeout_ms() orelse return null;
        return ms *| std.time.ns_per_ms;
    }

    /// Milliseconds until the next deadline of any kind; null when nothing is to come.
    fn timeout_ms(self: *Poller) ?u64 {
        var earliest = self.deadlines.next_ms();
        if (self.server.scheduler.next_expiry_ms()) |time| {
            earliest = @min(earliest orelse time, time);
        }
        if (self.draining) {
            earliest = @min(earliest orelse self.drain_deadline_ms, self.drain_deadline_ms);
            if (self.arrivals_end_ms) |time| earliest = @min(earliest.?, time);
            if (self.idle_end_ms) |time| earliest = @min(earliest.?, time);
        }
        if (self.server.limits_calls()) {
            earliest = @min(earliest orelse self.overdue_ms, self.overdue_ms);
        }
        if (self.stalled.look_ms) |time| earliest = @min(earliest orelse time, time);
        if (self.is_waiting_for_room()) if (self.stalled.next_ms()) |time| {
            earliest = @min(earliest orelse time, time);
        };
        if (self.wants_to_accept()) {
            const time = self.accept_after_ms;
            earliest = @min(earliest orelse time, time);
        }
        const time = earliest orelse return null;
        // One more, so that the coarse clock has passed the deadline when the poll returns.
        const now = sys.monotonic_ms();
        return if (time < now) 0 else time - now + 1;
    }

    fn on_event(self: *Poller, event: reactor_module.Event) void {
        if (event.token & listener_bit != 0) {
            const index: usize = @intCast(event.token & ~listener_bit);
            if (index >= self.listeners.len) return;
            const is_open = self.listeners[index].fd != sys.no_fd;
            if (event.readable and is_open) self.listeners[index].unread = true;
            return;
        }
        const connection = self.slots.find(event.token & ~watch_bit) orelse return;
        if (event.token & watch_bit != 0) return self.on_watched(connection);
        if (connection.turn.load(.acquire) & Turn.worker != 0) {
            // Not ours: leave word for when it comes back. If it came back just now, it is ours.
            const before = connection.turn.fetchOr(bits_of(event), .acq_rel);
            if (before & Turn.worker != 0) return;
            connection.turn.store(0, .monotonic);
        }
        if (event.readable) connection.unread = true;
        if (event.hangup) connection.hangup = true;
        self.proceed(connection, event.writable, event.broken);
    }

    fn bits_of(event: reactor_module.Event) u32 {
        var bits: u32 = 0;
        if (event.readable) bits |= Turn.readable;
        if (event.writable) bits |= Turn.writable;
        if (event.hangup) bits |= Turn.hangup;
        if (event.broken) bits |= Turn.broken;
        return bits;
    }

    /// Does what can be done on a connection that is the poller's.
    fn proceed(self: *Poller, connection: *Connection, writable: bool, broken: bool) void {
        switch (connection.state) {
            .free, .queued, .running, .closing => {},
            .reading_proxy_header => if (connection.unread) self.read_proxy_header(connection),
            .reading_head => if (connection.unread) self.read_head(connection),
            .reading_body => self.go_on_with_body(connection, writable),
            .writing => if (broken) {
                self.mark_closing(connection);
            } else if (writable) {
                self.flush(connection);
            },
            .suspended => if (broken) {
                self.mark_closing(connection);
            } else if (connection.hangup) {
                self.limit_suspension(connection);
            },
            // Broken or at its end: reading tells.
            .lingering => if (connection.unread) self.drop_input(connection),
        }
    }

    /// Takes the connections that workers gave back, oldest first.
    fn take_handed_back(self: *Poller) void {
        var newest = self.server.handed_back.swap(null, .acquire);
        var oldest: ?*Connection = null;
        while (newest) |connection| {
            newest = connection.next_handed_back;
            connection.next_handed_back = oldest;
            oldest = connection;
        }
        while (oldest) |connection| {
            oldest = connection.next_handed_back;
            connection.next_handed_back = null;
            const seen = connection.take_turn();
            if (connection.coming_back) {
                connection.coming_back = false;
                // A client that never stops sending comes back each time before it can expire.
                if (connection.deadline_ms <= self.now_ms) {
                    self.time_out(connection);
                    // One that lingers may have been given more time (`waits_for_tail`).
                    if (connection.state != .lingering) continue;
                }
            }
            if (connection.state == .closing) {
                self.mark_closing(connection);
            } else if (connection.state == .writing) {
                self.set_write_deadline(connection);
                self.proceed(connection, true, seen & Turn.broken != 0);
            } else {
                self.proceed(connection, false, seen & Turn.broken != 0);
            }
            if (self.complete_count == self.complete.len) self.submit();
        }
    }

    // ---- Suspended responses -------------------------------------------------------------------

    /// All that was ahead of the client has left, and the producer waits for an event of its own.
    fn begin_suspension(self: *Poller, connection: *Connection, suspension: *Suspension) void {
        connection.state = .suspended;
        self.server.suspended.add(1);
        const exchange = connection.exchange.?;
        exchange.record.timing.pass(.write, sys.monotonic_ns());
        if (suspension.is_resumed() or suspension.deadline_ms <= self.now_ms) {
            return self.resume_parked(connection);
        }
        if (suspension.watched != sys.no_fd and !self.watch(connection, suspension)) {
            return self.end_watch(connection);
        }
        // Nobody may look at the head while it moves.
        self.server.sending.remove(exchange);
        self.server.pool.compact(exchange);
        self.server.sending.add(connection, .app);
        connection.deadline_ms = suspension.deadline_ms;
        if (suspension.deadline_ms != suspension_module.never_ms) {
            self.deadlines.ensure(connection.index, connection.deadline_ms);
        }
        if (connection.hangup) self.limit_suspension(connection);
    }

    fn limit_suspension(self: *Poller, connection: *Connection) void {
        connection.deadline_ms = @min(connection.deadline_ms, self.now_ms + half_closed_ms);
        self.deadlines.ensure(connection.index, connection.deadline_ms);
    }

    fn end_watch(self: *Poller, connection: *Connection) void {
        _ = connection.exchange.?.suspension.?.begin_resume();
        self.resume_parked(connection);
    }

    /// False when there is nothing to wait for.
    fn watch(self: *Poller, connection: *Connection, suspension: *const Suspension) bool {
        const token = connection.token() | watch_bit;
        const fd = suspension.watched;
        if (sys.wait_ready(fd, suspension.what, 0)) return false;
        // A file that cannot be watched is ready, as select has it.
        self.reactor.watch(fd, token, suspension.what) catch return false;
        return true;
    }

    /// The event may be one of an earlier wait, or somebody else has taken what came: then the
    /// watch, which tells once, begins anew.
    fn on_watched(self: *Poller, connection: *Connection) void {
        const suspension = self.suspension_of(connection) orelse return;
        if (suspension.watched == sys.no_fd) return;
        self.reactor.unregister(suspension.watched);
        if (!self.watch(connection, suspension)) self.end_watch(connection);
    }

    /// What a connection that is the poller's waits for.
    fn suspension_of(_: *const Poller, connection: *Connection) ?*Suspension {
        if (connection.turn.load(.acquire) & Turn.worker != 0) return null;
        return if (connection.state == .suspended) connection.exchange.?.suspension else null;
    }

    /// Goes on with the responses that the application has resumed. One that its worker still has
    /// is looked at when it is handed back.
    fn take_resumed(self: *Poller) void {
        var newest = self.server.resumed.swap(null, .acquire);
        var oldest: ?*Suspension = null;
        while (newest) |suspension| {
            newest = suspension.next;
            suspension.next = oldest;
            oldest = suspension;
        }
        while (oldest) |suspension| {
            oldest = suspension.next;
            defer suspension.release(self.server.gpa);
            const connection = self.slots.find(suspension.token) orelse continue;
            if (self.suspension_of(connection) != suspension) continue;
            self.resume_parked(connection);
        }
    }

    fn end_suspension(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        const suspension = exchange.suspension orelse return;
        exchange.suspension = null;
        if (suspension.watched != sys.no_fd) self.reactor.unregister(suspension.watched);
        exchange.progress.timed_out = suspension.end() and !connection.abandoned;
        suspension.release(self.server.gpa);
    }

    // ---- Accepting -----------------------------------------------------------------------------

    fn wants_to_accept(self: *Poller) bool {
        if (self.draining) return false;
        for (self.listeners) |listener| if (listener.unread) return !self.is_full();
        return false;
    }

    /// A client waits in the backlog, and every slot is in use.
    fn is_waiting_for_room(self: *const Poller) bool {
        if (self.draining or self.slots.in_use < self.slots.connections.len) return false;
        for (self.listeners) |listener| if (listener.unread) return true;
        return false;
    }

    fn is_full(self: *Poller) bool {
        return self.slots.in_use == self.slots.connections.len and self.find_idle() == null and
            !self.stalled.has_any(self);
    }

    /// Goes on accepting where an event, a full table or missing descriptors had interrupted it.
    fn resume_accepting(self: *Poller) void {
        if (self.now_ms < self.accept_after_ms) return;
        for (self.listeners, 0..) |*listener, index| {
            // A bound, so that a flood of new clients does not starve the old ones.
            var budget: u32 = 64;
            while (listener.unread and budget > 0) : (budget -= 1) {
                if (!self.accept_one(listener, @intCast(index))) break;
            }
        }
    }

    /// False when there is nothing more to accept for now.
    fn accept_one(self: *Poller, listener: *Listener, index: u8) bool {
        if (self.slots.in_use == self.slots.connections.len) {
            if (!self.make_room(listener, .connections_full)) {
                if (listener.unread) self.note_pause(.connections);
                return false;
            }
        }
        const connection = self.accept_into_slot(listener.fd) catch |err| switch (err) {
            error.WouldBlock => {
                self.end_backlog(listener);
                return false;
            },
            error.ConnectionGone => return true,
            error.DescriptorsExhausted => again: {
                if (!self.make_room(listener, .descriptors_exhausted)) {
                    return if (listener.unread) self.pause_accepting(.descriptors) else false;
                }
                break :again self.accept_into_slot(listener.fd) catch |again| switch (again) {
                    error.DescriptorsExhausted => return self.pause_accepting(.descriptors),
                    else => return self.pause_accepting(.memory),
                };
            },
            error.OutOfMemory, error.Unexpected => return self.pause_accepting(.memory),
        };
        if (connection) |one| self.adopt(one, index);
        return true;
    }

    /// Null where no slot is free for the client.
    fn accept_into_slot(self: *Poller, listener: sys.Fd) sys.AcceptError!?*Connection {
        forks.lock();
        defer forks.unlock();
        const accepted = try sys.accept(listener);
        const connection = self.slots.acquire() orelse {
            sys.close(accepted.fd);
            return null;
        };
        connection.fd = accepted.fd;
        connection.address = accepted.address;
        return connection;
    }

    /// Closes what has ended, or else the connection that has been idle longest, or else the one
    /// whose client has taken nothing of its response for longest, for a client in the backlog.
    /// False when there is no room yet, or nobody waits, so that nobody has to go: accept(2) finds
    /// out that there are no descriptors before it looks for a client.
    fn make_room(self: *Poller, listener: *Listener, why: notices_module.Kind) bool {
        if (!sys.may_be_ready(listener.fd, .readable)) {
            self.end_backlog(listener);
            return false;
        }
        if (self.closing == null) {
            const idle = self.find_idle() orelse return self.evict_stalled(why);
            self.lane.shard.count_closed(.evicted);
            self.server.notify(why, &sys.no_address);
            self.mark_closing(idle);
        }
        self.close_marked();
        return true;
    }

    /// False as long as there is no room, which may be soon.
    fn evict_stalled(self: *Poller, why: notices_module.Kind) bool {
        // One that is idle only has an event on its way.
        if (self.nobody_idle_ms < self.now_ms) return false;
        const need: eviction.Need = switch (why) {
            .descriptors_exhausted => .descriptors,
            else => .connections,
        };
        if (!self.stalled.evict(self, need) or self.closing == null) return false;
        self.close_marked();
        return true;
    }

    /// Always false, as `accept_one`.
    fn pause_accepting(self: *Poller, why: metrics_module.Pause) bool {
        self.accept_after_ms = self.now_ms + accept_pause_ms;
        self.note_pause(why);
        return false;
    }

    /// Nobody waits there any more.
    fn end_backlog(self: *Poller, listener: *Listener) void {
        listener.unread = false;
        self.accept_pause = null;
    }

    /// Counts and logs that clients wait in the backlog; once, until one has been let in.
    fn note_pause(self: *Poller, why: metrics_module.Pause) void {
        if (self.accept_pause != null) return;
        // It only has an event on its way.
        if (why == .connections and self.find_longest_idle() != null) return;
        // A client that has stalled makes room in a moment.
        if (why == .connections and self.stalled.makes_room()) return;
        self.accept_pause = why;
        observer.note_pause(self.server, &self.lane, why);
    }

    fn adopt(self: *Poller, connection: *Connection, listener: u8) void {
        self.accept_pause = null;
        connection.listener = listener;
        connection.state = .reading_head;
        connection.active_ns = sys.monotonic_ns();
        if (unsent_share(self.slots.in_use)) |bytes| sys.limit_unsent(connection.fd, bytes);
        _ = self.server.connection_count.fetchAdd(1, .monotonic);
        var patience_ms = self.server.options.keep_alive_timeout_ms;
        const proxies = &self.server.proxies;
        connection.trusted = proxies.trusts(&connection.address);
        if (connection.trusted and proxies.protocol) {
            connection.state = .reading_proxy_header;
            patience_ms = self.server.options.head_timeout_ms;
        }
        self.set_deadline(connection, patience_ms);
        self.lane.shard.accepted.add(1);
        self.reactor.register(connection.fd, connection.token()) catch {
            self.mark_closing(connection);
        };
    }

    /// The connection that has been idle longest, to make room for a new one. Null also when an
    /// event of that one is on its way: it may have a request, or have ended and make room itself.
    fn find_idle(self: *Poller) ?*Connection {
        // Every slot is looked at: once in a millisecond, not several times for each poll.
        if (self.now_ms <= self.nobody_idle_ms) return null;
        const connection = self.find_longest_idle() orelse {
            self.nobody_idle_ms = self.now_ms;
            return null;
        };
        if (!sys.may_be_ready(connection.fd, .readable)) return connection;
        connection.unread = true; // so that it does not stand in the way again
        return null;
    }

    fn find_longest_idle(self: *const Poller) ?*Connection {
        var found: ?*Connection = null;
        for (self.slots.touched()) |*connection| {
            if (connection.fd == sys.no_fd) continue;
            if (connection.turn.load(.seq_cst) & Turn.worker != 0) continue;
            // Who was answered for the last time and only has not closed yet counts as idle.
            if (!connection.is_idle() and connection.state != .lingering) continue;
            if (connection.unread) continue;
            if (found == null or connection.active_ns < found.?.active_ns) found = connection;
        }
        return found;
    }

    // ---- Reading a PROXY header ----------------------------------------------------------------

    fn read_proxy_header(self: *Poller, connection: *Connection) void {
        const exchange = connection.exchange orelse self.server.pool.acquire() catch {
            return self.turn_away(connection, "out_of_memory");
        };
        connection.exchange = exchange;
        comptime std.debug.assert(proxy_header.bytes_max < exchange_module.buffer_bytes);
        while (true) {
            const count = self.receive(connection, exchange.bytes[exchange.received..]) orelse
                return;
            exchange.received += @intCast(count);
            if (count > 0 and self.take_proxy_header(connection, exchange)) return;
            if (!connection.unread) break;
        }
        if (connection.hangup) {
            self.mark_closing(connection);
        } else if (exchange.received == 0) {
            self.server.pool.release(exchange);
            connection.exchange = null;
        }
    }

    /// True when the connection has left the state of reading a PROXY header.
    fn take_proxy_header(self: *Poller, connection: *Connection, exchange: *Exchange) bool {
        var parser: proxy_header.Parser = .{};
        const complete = parser.feed(exchange.bytes[0..exchange.received]) catch {
            // No answer: who speaks is not known, nor whether it is HTTP.
            self.server.notify(.proxy_header_missing, &connection.address);
            self.turn_away(connection, "bad_proxy_header");
            return true;
        };
        if (!complete) return false;
        self.server.proxies.introduce(connection, parser.source);
        exchange.request_end = parser.header_bytes;
        connection.state = .reading_head;
        exchange.begin_next(self.server.gpa);
        if (exchange.received > 0) self.begin_first(connection, exchange);
        self.read_on(connection, exchange);
        return true;
    }

    /// Closes a connection on which no request has begun, and says why.
    fn turn_away(self: *Poller, connection: *Connection, reason: []const u8) void {
        observer.turn_away(self.server, &self.lane, connection, reason);
        self.mark_closing(connection);
    }

    // ---- Reading a head ------------------------------------------------------------------------

    fn read_head(self: *Poller, connection: *Connection) void {
        const fresh = connection.exchange == null;
        const exchange = connection.exchange orelse self.server.pool.acquire() catch {
            return self.refuse(connection, 503, "out_of_memory");
        };
        connection.exchange = exchange;
        if (fresh and connection.has_skipped_line) exchange.head.begin_after_empty_line();
        while (true) {
            const count = self.receive(connection, exchange.bytes[exchange.received..]) orelse
                return;
            exchange.received += @intCast(count);
            if (count > 0 and !exchange.record.is_open()) self.begin_first(connection, exchange);
            if (count > 0 and self.parse(connection, exchange)) return;
            if (!connection.unread) break;
            if (exchange.received == exchange.bytes.len) {
                exchange.ensure_space(self.server.gpa, exchange_module.buffer_bytes) catch {
                    return self.refuse(connection, 503, "out_of_memory");
                };
            }
        }
        if (exchange.is_blank()) {
            // Not anew for nothing: an event need not mean that something came.
            const came = exchange.received > 0;
            self.release_blank(connection, exchange);
            if (came) self.set_deadline(connection, self.server.options.keep_alive_timeout_ms);
            if (connection.hangup) self.mark_closing(connection);
        } else if (connection.hangup) {
            self.mark_closing(connection); // the rest of the head will never come
        } else if (fresh) {
            self.set_deadline(connection, self.server.options.head_timeout_ms);
        }
    }

    /// A request begins on a connection that had none in progress.
    fn begin_first(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        connection.waits_for_tail = false;
        if (!connection.pipelines) self.asked_ns = self.now_ns;
        connection.pipelines = false;
        self.begin_record(exchange, self.now_ns);
    }

    /// A request begins: its first byte is here.
    fn begin_record(self: *Poller, exchange: *Exchange, now_ns: u64) void {
        self.request_count += 1;
        exchange.record.begin(now_ns, self.request_count);
    }

    /// No request was in progress: at the most an empty line came, which is remembered. One is
    /// allowed (RFC 9112 2.2), and a client that went on sending them would never be idle.
    fn release_blank(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        if (exchange.received > 0) connection.has_skipped_line = true;
        exchange.record.number = 0;
        self.server.pool.release(exchange);
        connection.exchange = null;
    }

    /// Bytes received: 0 when there are none now; null when the connection was marked for closing
    /// or its end was seen with nothing in progress.
    fn receive(self: *Poller, connection: *Connection, buffer: []u8) ?usize {
        const count = sys.recv(connection.fd, buffer) catch |err| switch (err) {
            error.WouldBlock => {
                connection.unread = false;
                return 0;
            },
            error.ConnectionGone, error.OutOfMemory, error.Unexpected => {
                self.mark_closing(connection);
                return null;
            },
        };
        if (count == 0) {
            connection.hangup = true;
            connection.unread = false;
            self.mark_closing(connection);
            return null;
        }
        self.lane.shard.bytes_received.add(count);
        // A stream socket that gave less than it was asked for is empty (epoll(7)); its end, if it
        // comes or came, is an event of its own.
        connection.unread = count == buffer.len or connection.hangup;
        return count;
    }

    /// Goes on parsing. True when the connection has left the state of reading a head.
    fn parse(self: *Poller, connection: *Connection, exchange: *Exchange) bool {
        const bytes = exchange.bytes[0..exchange.received];
        const complete = exchange.head.parse(bytes, self.head_limits) catch |err| {
            self.refuse(connection, request_head.status_of(err), request_head.reason_of(err));
            return true;
        };
        if (!complete) return false;
        connection.has_skipped_line = false;
        if (connection.is_trusted()) exchange.believe(sys.realtime_ms());
        if (exchange.head.target_form == .authority_form) {
            // CONNECT: there is no tunnel here, and a 2xx from an application would promise one.
            self.refuse(connection, 501, "connect");
            return true;
        }
        if (connection.trusted) self.server.proxies.read_claims(exchange) catch |err| {
            self.refuse(connection, 400, forwarded.reason_of(err));
            return true;
        };
        if (exchange.is_misdirected()) {
            self.refuse(connection, 421, "misdirected");
            return true;
        }
        if (self.server.options.in_band.len > 0) {
            if (self.answer_probe(connection, exchange)) return true;
        }
        self.begin_body(connection, exchange);
        return true;
    }

    /// Answers a health check at once, whatever the threads do; false when it is none.
    fn answer_probe(self: *Poller, connection: *Connection, exchange: *Exchange) bool {
        const head = &exchange.head;
        const probe = Probe.of(
            self.server.options.in_band,
            head.method.of(exchange.bytes),
            head.path.of(exchange.bytes),
        ) orelse return false;
        self.server.answer_probe(connection, probe, &self.date);
        self.finish_own(connection);
        return true;
    }

    // ---- Reading a body ------------------------------------------------------------------------

    fn begin_body(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        const server = self.server;
        const body = &exchange.body;
        body.begin(exchange, server.gpa, &server.body_limits) catch |err| {
            return self.refuse_body(connection, err);
        };
        if (body.complete or body.mode == .streamed) return self.make_ready(connection, exchange);
        // A file's answer takes no body, so the client need not send it (RFC 9110 10.1.1).
        if (body.continue_due and self.is_for_files(exchange)) {
            return self.put_for_files(connection);
        }
        self.gather_body(connection, exchange);
    }

    fn gather_body(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        const server = self.server;
        const body = &exchange.body;
        connection.state = .reading_body;
        if (body.continue_due and !self.send_continue(connection, body)) return;
        exchange.record.timing.pass(.head, self.now_ns);
        body.take_buffered(exchange, server.gpa, self.scratch, &server.body_limits) catch |err| {
            return self.refuse_body(connection, err);
        };
        if (body.complete) return self.make_ready(connection, exchange);
        self.set_deadline(connection, server.options.body_timeout_ms);
        if (connection.unread) return self.read_body(connection);
        server.sending.add(connection, .body);
    }

    /// False when the connection was marked for closing. Where the answer to the request before
    /// fills the socket, it is still due, and sent when there is room.
    fn send_continue(self: *Poller, connection: *Connection, body: *body_module.Body) bool {
        const sent = sys.send(connection.fd, body_module.continue_head) catch |err| switch (err) {
            error.WouldBlock => return true,
            error.OutOfMemory, error.ConnectionGone, error.Unexpected => 0,
        };
        body.continue_due = false;
        if (sent == body_module.continue_head.len) return true;
        // A part of so little is nothing that a kernel takes.
        self.mark_closing(connection);
        return false;
    }

    fn go_on_with_body(self: *Poller, connection: *Connection, writable: bool) void {
        const body = &connection.exchange.?.body;
        if (writable and body.continue_due and !self.send_continue(connection, body)) return;
        if (connection.unread) self.read_body(connection);
    }

    fn read_body(self: *Poller, connection: *Connection) void {
        const server = self.server;
        const exchange = connection.exchange.?;
        const body = &exchange.body;
        // Nobody may look at the head while it moves.
        server.sending.remove(exchange);
        // A bound, so that one fast upload does not keep the others waiting.
        var budget: u32 = 16;
        while (connection.unread and budget > 0) : (budget -= 1) {
            const room = body.receive_into(exchange, server.gpa, self.scratch) catch {
                return self.refuse(connection, 503, "out_of_memory");
            };
            const count = self.receive(connection, room) orelse return;
            if (count == 0) break;
            // The client does not wait for it (RFC 9110 10.1.1).
            body.continue_due = false;
            const limits = &server.body_limits;
            body.take_received(exchange, server.gpa, self.scratch, count, limits) catch |err| {
                return self.refuse_body(connection, err);
            };
            if (body.complete) return self.make_ready(connection, exchange);
        }
        server.sending.add(connection, .body);
        self.set_deadline(connection, server.options.body_timeout_ms);
        if (connection.unread) self.come_back(connection);
    }

    /// Looks at the connection again in the next batch though no event will tell of it.
    fn come_back(self: *Poller, connection: *Connection) void {
        connection.coming_back = true;
        connection.turn.store(Turn.worker | Turn.readable, .monotonic);
        self.server.hand_back(connection);
    }

    /// The same for output that the socket would still take.
    fn come_back_to_write(self: *Poller, connection: *Connection) void {
        connection.coming_back = true;
        connection.turn.store(Turn.worker, .monotonic);
        self.server.hand_back(connection);
    }

    fn refuse_body(self: *Poller, connection: *Connection, err: body_module.TakeError) void {
        self.refuse_with(connection, body_module.refusal_of(err));
    }

    // ---- To the application --------------------------------------------------------------------

    fn make_ready(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        if (self.is_for_files(exchange)) return self.put_for_files(connection);
        self.make_ready_for_application(connection, exchange);
    }

    fn is_for_files(self: *Poller, exchange: *const Exchange) bool {
        const files = self.static_files orelse return false;
        return files.is_routed(&exchange.head, exchange.bytes);
    }

    /// Not answered at once: what follows an answer may be the next request for a file.
    fn put_for_files(self: *Poller, connection: *Connection) void {
        connection.state = .queued;
        connection.next_own = self.for_files;
        self.for_files = connection;
    }

    fn make_ready_for_application(
        self: *Poller,
        connection: *Connection,
        exchange: *Exchange,
    ) void {
        connection.state = .queued;
        connection.route = predictor.route_of(exchange.head.path.of(exchange.bytes));
        self.give_turn(connection);
        self.complete[self.complete_count] = connection;
        self.complete_count += 1;
        if (self.complete_count == self.complete.len) self.submit();
    }

    /// From here the connection is the workers'.
    fn give_turn(self: *Poller, connection: *Connection) void {
        // A worker may set any deadline from its own time on, without telling the heap.
        const options = &self.server.options;
        const soonest = @min(options.keep_alive_timeout_ms, options.write_timeout_ms);
        self.deadlines.ensure(connection.index, self.now_ms + soonest);
        connection.turn.store(Turn.worker, .release);
    }

    fn submit(self: *Poller) void {
        if (self.complete_count == 0) return;
        const batch = self.complete[0..self.complete_count];
        self.complete_count = 0;
        const now_ns = sys.monotonic_ns();
        for (batch) |connection| {
            const exchange = connection.exchange.?;
            const reads_body = exchange.body.mode == .gathered;
            exchange.record.timing.pass(if (reads_body) .body else .head, now_ns);
        }
        const taken = self.server.scheduler.submit(batch, now_ns);
        for (batch[taken..]) |connection| self.shed(connection, "queue_full");
    }

    /// Answers 503 to a request that the queue did not take, or held for too long.
    fn shed(self: *Poller, connection: *Connection, reason: []const u8) void {
        _ = connection.take_turn();
        self.refuse_with(connection, .{ .status = 503, .reason = reason, .retry_after = 1 });
    }

    // ---- Files ---------------------------------------------------------------------------------

    /// Answers the requests for files that have come until now; those that come behind them on the
    /// same connections are for the next time, so that no client has the poller for itself.
    fn answer_files(self: *Poller) void {
        var next = self.for_files;
        self.for_files = null;
        while (next) |connection| {
            next = connection.next_own;
            connection.next_own = null;
            self.answer_file(connection, connection.exchange.?);
        }
    }

    fn answer_file(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        const server = self.server;
        const limit = server.options.requests_per_connection;
        const head = &exchange.head;
        const persists = !server.draining.load(.acquire) and head.persistent and
            exchange.body.complete and
            (limit == 0 or connection.requests +| 1 < limit);
        const persistence: response_head.Persistence = if (!persists)
            .close
        else if (head.version == .http_1_0) .keep_alive else .implied;
        const now = sys.realtime_seconds();
        const answer = self.static_files.?.answer(&.{
            .head = head,
            .bytes = exchange.bytes,
            .persistence = persistence,
            .now_ms = self.now_ms,
            .now = now,
            .date = self.date.at(now),
            .request_id = exchange.request_id(),
        }, self.scratch) orelse return self.pass_to_application(connection, exchange);
        connection.requests +|= 1;
        connection.active_ns = self.now_ms * std.time.ns_per_ms;
        server.count_answered();
        connection.state = .writing;
        connection.after = if (persists) .keep else .close;
        self.set_write_deadline(connection);
        const output = &exchange.output;
        self.note_answer(exchange, answer.status, answer.bytes);
        output.take(server.gpa, connection.fd, answer) catch return self.mark_closing(connection);
        const sent = answer.bytes.len - @min(output.kept_bytes(), answer.bytes.len);
        exchange.record.bytes_sent += sent;
        self.lane.shard.bytes_sent.add(sent);
        self.flush(connection);
    }

    /// `fallthrough`: no file answers the request. A body that the client was not asked for is
    /// gathered first.
    fn pass_to_application(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        const body = &exchange.body;
        if (body.mode == .gathered and !body.complete) {
            return self.gather_body(connection, exchange);
        }
        self.make_ready_for_application(connection, exchange);
    }

    /// For the metrics and the log: it was answered here, at once.
    fn note_answer(_: *Poller, exchange: *Exchange, status: u16, bytes: []const u8) void {
        const record = &exchange.record;
        const has_body = exchange.body.mode != .none;
        record.timing.pass(if (has_body) .body else .head, sys.monotonic_ns());
        record.status = status;
        record.head_bytes_sent += if (std.mem.indexOf(u8, bytes, "\r\n\r\n")) |end| end + 4 else 0;
    }

    // ---- Answers of the server's own, and what comes after an answer ---------------------------

    fn refuse(self: *Poller, connection: *Connection, status: u16, reason: []const u8) void {
        self.refuse_with(connection, .{ .status = status, .reason = reason });
    }

    fn refuse_with(self: *Poller, connection: *Connection, refusal: refusal_module.Refusal) void {
        if (connection.exchange) |exchange| {
            const phase = phase_of(connection.state);
            exchange.record.timing.pass(phase, sys.monotonic_ns());
            self.server.sending.remove(exchange);
        }
        self.server.refuse(connection, refusal, &self.date, &self.lane);
        self.finish_own(connection);
    }

    /// After an answer of the server's own has been written.
    fn finish_own(self: *Poller, connection: *Connection) void {
        if (connection.state == .closing) return self.mark_closing(connection);
        self.set_write_deadline(connection);
        self.flush(connection);
    }

    /// The phase that a request is in before it has an answer.
    fn phase_of(state: connection_module.State) Phase {
        return switch (state) {
            .reading_body => .body,
            .queued => .queue,
            .suspended => .app,
            .reading_proxy_header, .reading_head => .head,
            .free, .running, .writing, .lingering, .closing => .head,
        };
    }

    /// The answer has left, or is given up.
    fn finish(self: *Poller, connection: *Connection) void {
        const exchange = connection.exchange orelse return;
        const record = &exchange.record;
        if (record.is_open() and record.status != 0) {
            record.timing.pass(.write, sys.monotonic_ns());
        }
        observer.finish(self.server, &self.lane, connection);
    }

    /// Sends what is left of the response, then does what comes after it.
    fn flush(self: *Poller, connection: *Connection) void {
        if (connection.exchange) |exchange| {
            const output = &exchange.output;
            var budget: u64 = turn_bytes_max;
            while (!output.is_empty()) {
                if (budget == 0) {
                    self.set_write_deadline(connection);
                    self.server.sending.add(connection, .write);
                    return self.come_back_to_write(connection);
                }
                const count = output.send(self.server.gpa, connection.fd, budget) catch |err| {
                    switch (err) {
                        error.WouldBlock => {
                            self.begin_stall(connection);
                            return self.server.sending.add(connection, .write);
                        },
                        error.FileEnded => if (connection.after == .proceed) {
                            // Its producer tells why the response is too short.
                            exchange.progress.remaining += output.file.remaining;
                            output.drop_file();
                            break;
                        },
                        error.ConnectionGone, error.OutOfMemory, error.Unexpected => {},
                    }
                    return self.mark_closing(connection);
                };
                exchange.record.bytes_sent += count;
                self.lane.shard.bytes_sent.add(count);
                budget -|= count;
            }
        }
        if (connection.after != .proceed) self.finish(connection);
        switch (connection.after) {
            .keep => self.next_request(connection),
            .close => self.linger(connection),
            .proceed => if (connection.exchange.?.suspension) |suspension| {
                self.begin_suspension(connection, suspension);
            } else {
                self.resume_parked(connection);
            },
        }
    }

    /// The client took all that was ahead of it, or has gone: the producer goes on, which may have
    /// to wait for its thread.
    fn resume_parked(self: *Poller, connection: *Connection) void {
        const exchange = connection.exchange.?;
        const is_suspended = connection.state == .suspended;
        if (is_suspended) self.server.suspended.take_one();
        // A suspended one has waited for the application.
        const phase: Phase = if (is_suspended) .app else .write;
        exchange.record.timing.pass(phase, sys.monotonic_ns());
        self.server.sending.requeue(exchange, connection.worker != null);
        self.end_suspension(connection, exchange);
        self.has_resumed = true;
        connection.state = .queued;
        self.give_turn(connection);
        self.server.scheduler.submit_begun(connection);
    }

    fn next_request(self: *Poller, connection: *Connection) void {
        const exchange = connection.exchange.?;
        connection.state = .reading_head;
        exchange.begin_next(self.server.gpa);
        if (exchange.received > 0) {
            connection.pipelines = true;
            // It may have come long ago: what it waited for is the answer before it.
            self.begin_record(exchange, sys.monotonic_ns());
            if (self.do_others_ask()) return self.put_behind(connection);
        }
        self.read_on(connection, exchange);
    }

    fn do_others_ask(self: *const Poller) bool {
        return self.now_ns - self.asked_ns < quiet_ns;
    }

    /// Lets other clients' requests go first. They come one by one, each after a round trip; a
    /// client whose next one is always here would have an answer in every turn, of which there are
    /// as many as the others have requests.
    fn put_behind(self: *Poller, connection: *Connection) void {
        // Events leave word, and no deadline strikes.
        connection.turn.store(Turn.worker, .monotonic);
        if (self.pipelined == null) self.pipelined_ns = self.now_ns;
        connection.next_own = self.pipelined;
        self.pipelined = connection;
    }

    /// Takes a request of each connection that pipelines, if they have waited enough.
    fn take_pipelined(self: *Poller) void {
        const waited_ns = self.now_ns - self.pipelined_ns;
        if (self.do_others_ask() and waited_ns < pipelined_wait_ns) return;
        var newest = self.pipelined;
        var oldest: ?*Connection = null;
        while (newest) |connection| {
            newest = connection.next_own;
            connection.next_own = oldest;
            oldest = connection;
        }
        self.pipelined = null;
        while (oldest) |connection| {
            oldest = connection.next_own;
            connection.next_own = null;
            if (connection.take_turn() & Turn.broken != 0) {
                self.mark_closing(connection);
            } else {
                self.read_on(connection, connection.exchange.?);
            }
        }
    }

    /// Reads a request whose first bytes may be in the buffer.
    fn read_on(self: *Poller, connection: *Connection, exchange: *Exchange) void {
        if (exchange.received > 0 and self.parse(connection, exchange)) return;
        if (exchange.is_blank()) {
            self.release_blank(connection, exchange);
            self.set_deadline(connection, self.server.options.keep_alive_timeout_ms);
        } else {
            self.set_deadline(connection, self.server.options.head_timeout_ms);
        }
        // A client that closed its side is seen here: reading finds the end.
        if (connection.unread or connection.hangup) self.read_head(connection);
    }

    /// Closing at once would reset the connection if the client is still sending, or is about to,
    /// and with it the answer on its way (RFC 9112 9.6).
    fn linger(self: *Poller, connection: *Connection) void {
        if (connection.hangup and !connection.unread) return self.mark_closing(connection);
        sys.shutdown_send(connection.fd);
        connection.state = .lingering;
        connection.came_whole = false;
        self.server.lingering.add(1);
        const limit = self.server.options.requests_per_connection;
        if (limit > 0 and connection.requests >= limit) {
            self.lane.shard.count_closed(.requests_per_connection);
        }
        if (connection.exchange) |exchange| {
            connection.came_whole = exchange.head.is_complete() and exchange.body.complete;
            self.server.pool.release(exchange);
            connection.exchange = null;
        }
        connection.linger_end_ms = self.now_ms + linger_ms_max;
        self.set_deadline(connection, linger_ms);
        connection.unread = true;
        self.drop_input(connection);
    }

    fn drop_input(self: *Poller, connection: *Connection) void {
        var budget: u32 = 16;
        while (connection.unread and budget > 0) : (budget -= 1) {
            const count = self.receive(connection, self.scratch) orelse return;
            if (count == 0) return;
            if (connection.came_whole or self.draining) continue;
            const left_ms = connection.linger_end_ms -| self.now_ms;
            self.set_deadline(connection, @min(linger_ms, left_ms));
        }
        if (connection.unread) self.come_back(connection);
    }

    pub fn mark_closing(self: *Poller, connection: *Connection) void {
        std.debug.assert(connection.next_handed_back == null);
        if (connection.exchange) |exchange| if (exchange.continuation != null) {
            // The producer has to hear of it first; the connection comes back when it has.
            connection.abandoned = true;
            exchange.record.note_client_gone();
            // Its thread may be busy for long: what nobody will read takes no memory meanwhile.
            if (!exchange.output.is_empty()) connection.resets = true;
            exchange.output.deinit(self.server.gpa);
            return self.resume_parked(connection);
        };
        self.give_up(connection);
        if (connection.state == .lingering) self.server.lingering.take_one();
        connection.state = .closing;
        connection.next_handed_back = self.closing;
        self.closing = connection;
    }

    /// Closes the record of a request whose client will not get the whole answer.
    fn give_up(self: *Poller, connection: *Connection) void {
        const exchange = connection.exchange orelse return;
        const record = &exchange.record;
        // A worker that wants it closed has said why.
        if (record.is_open() and connection.state != .closing) {
            if (record.status == 0) {
                record.timing.pass(phase_of(connection.state), sys.monotonic_ns());
            }
            record.note_client_gone();
        }
        self.finish(connection);
    }

    pub fn close_marked(self: *Poller) void {
        while (self.closing) |connection| {
            self.closing = connection.next_handed_back;
            self.deadlines.remove(connection.index);
            self.reactor.unregister(connection.fd);
            // An end that the client could take for the end of the response must not look like it.
            if (connection.exchange) |exchange| {
                if (!exchange.output.is_empty()) connection.resets = true;
            }
            if (connection.resets) sys.reset_on_close(connection.fd);
            forks.lock();
            sys.close(connection.fd);
            connection.fd = sys.no_fd;
            forks.unlock();
            if (connection.exchange) |exchange| self.server.pool.release(exchange);
            self.slots.release(connection);
            self.accept_after_ms = 0; // there is a descriptor again
            _ = self.server.connection_count.fetchSub(1, .monotonic);
        }
    }

    // ---- Time ----------------------------------------------------------------------------------

    fn set_deadline(self: *Poller, connection: *Connection, after_ms: u64) void {
        connection.deadline_ms = self.now_ms + after_ms;
        if (self.draining) self.shorten_deadline(connection);
        self.deadlines.ensure(connection.index, connection.deadline_ms);
    }

    /// For a response whose client has just taken something, or is about to.
    pub fn set_write_deadline(self: *Poller, connection: *Connection) void {
        connection.stall.since_ms = self.now_ms;
        self.set_deadline(connection, self.server.options.write_timeout_ms);
    }

    /// The client has to take some of what is in the kernel before more can be sent.
    fn begin_stall(self: *Poller, connection: *Connection) void {
        self.set_write_deadline(connection);
        connection.stall.begin(connection.fd, self.now_ms);
        self.stalled.watch(self);
    }

    /// Whether the client of an answered request still takes the end of the answer out of the
    /// kernel, which would drop it in time if the connection were closed: Linux gives a client of a
    /// closed socket that takes nothing some minutes.
    fn waits_for_tail(self: *Poller, connection: *Connection) bool {
        if (self.draining or connection.hangup) return false;
        const fd = connection.fd;
        // Our FIN counts as one.
        if ((sys.unacknowledged(fd) orelse 0) <= 1) return false;
        if (!connection.waits_for_tail) {
            connection.waits_for_tail = true;
            connection.stall.begin(fd, self.now_ms);
            self.stalled.watch(self);
            return true;
        }
        if (connection.stall.has_moved(fd, self.now_ms)) return true;
        return self.now_ms - connection.stall.since_ms < self.server.options.write_timeout_ms;
    }

    /// Whether the response can end only in a thread that is in another call.
    pub fn waits_for_thread(self: *Poller, connection: *const Connection) bool {
        const exchange = connection.exchange orelse return false;
        if (exchange.continuation == null) return false;
        return self.server.scheduler.is_running(connection.worker orelse return false);
    }

    /// Whether the connection holds more than its equal share of `limits.buffer_memory`.
    pub fn holds_share(self: *const Poller, connection: *const Connection) bool {
        const exchange = connection.exchange orelse return false;
        const options = &self.server.options;
        const share = @max(1, options.buffer_memory_bytes / options.connections);
        return exchange.output.buffer.len + exchange.body.counted >= share;
    }

    fn expire(self: *Poller) void {
        self.stalled.look(self);
        while (self.deadlines.take_due(self.now_ms)) |index| {
            const connection = &self.slots.connections[index];
            if (connection.turn.load(.acquire) & Turn.worker != 0) {
                const options = &self.server.options;
                const soonest = @min(options.keep_alive_timeout_ms, options.write_timeout_ms);
                const again_ms = if (connection.coming_back) 1 else @max(soonest, 1);
                self.deadlines.ensure(index, self.now_ms + again_ms);
            } else if (connection.deadline_ms > self.now_ms) {
                self.deadlines.ensure(index, connection.deadline_ms);
            } else {
                self.time_out(connection);
            }
        }
        while (self.server.scheduler.take_expired()) |connection| {
            self.shed(connection, "queue_timeout");
        }
        if (self.server.limits_calls() and self.now_ms >= self.overdue_ms) {
            self.overdue_ms = overdue.look(self.server, &self.lane, &self.date, self.now_ms);
        }
    }

    fn time_out(self: *Poller, connection: *Connection) void {
        switch (connection.state) {
            .reading_proxy_header => self.turn_away(connection, "proxy_header_timeout"),
            .reading_head => if (connection.exchange == null) {
                if (self.waits_for_tail(connection)) {
                    return self.set_deadline(connection, linger_ms);
                }
                self.lane.shard.count_closed(.keep_alive_timeout);
                self.mark_closing(connection);
            } else {
                self.refuse(connection, 408, "head_timeout");
            },
            .reading_body => self.refuse(connection, 408, "body_timeout"),
            .suspended => if (connection.exchange.?.suspension.?.deadline_ms > self.now_ms) {
                self.mark_closing(connection); // its patience ended, or rather its client's
            } else {
                self.resume_parked(connection);
            },
            .writing => {
                if (connection.stall.has_moved(connection.fd, self.now_ms)) {
                    return self.set_write_deadline(connection);
                }
                if (connection.exchange) |exchange| exchange.record.timed_out = .write;
                self.mark_closing(connection);
            },
            .lingering => if (self.waits_for_tail(connection)) {
                self.set_deadline(connection, linger_ms);
            } else self.mark_closing(connection),
            .free, .queued, .running, .closing => {},
        }
    }

    // ---- The end -------------------------------------------------------------------------------

    /// Lets nobody new in, takes what the kernel has accepted, and reads what has come.
    fn begin_drain(self: *Poller) void {
        self.now_ms = sys.monotonic_ms();
        self.draining = true;
        self.drain_began_ms = self.now_ms;
        self.drain_deadline_ms = self.now_ms + self.server.options.drain_timeout_ms;
        self.server.receive_by_ms.store(self.now_ms + drain_receive_ms, .release);
        self.server.wants_idle.store(true, .seq_cst);
        self.server.draining.store(true, .release);
        self.end_arrivals();
        for (self.slots.touched()) |*connection| {
            if (connection.fd == sys.no_fd) continue;
            if (connection.turn.load(.acquire) & Turn.worker != 0) continue;
            self.shorten_deadline(connection);
            self.deadlines.ensure(connection.index, connection.deadline_ms);
            // A request that came but was not read yet is answered.
            switch (connection.state) {
                .reading_head => self.read_head(connection),
                .reading_proxy_header => self.read_proxy_header(connection),
                else => continue,
            }
            if (self.complete_count == self.complete.len) self.submit();
        }
    }

    /// Closes the listeners, those at once on which that loses nobody.
    fn end_arrivals(self: *Poller) void {
        for (self.listeners, 0..) |*listener, index| {
            // From a shared one another process may go on accepting: nobody is kept off it.
            const is_ended = !listener.is_shared and sys.stop_arrivals(listener.fd);
            if (is_ended) self.arrivals_end_ms = self.now_ms + arrival_ms;
            self.accept_all(listener, @intCast(index));
            if (!is_ended) self.close_listener(listener);
        }
    }

    fn accept_all(self: *Poller, listener: *Listener, index: u8) void {
        listener.unread = true;
        while (listener.unread) if (!self.accept_one(listener, index)) break;
    }

    /// The handshakes that were under way have ended, or have had time to.
    fn close_arrivals(self: *Poller) void {
        const time = self.arrivals_end_ms orelse return;
        if (self.now_ms < time) return;
        for (self.listeners, 0..) |*listener, index| {
            if (listener.fd != sys.no_fd) self.accept_all(listener, @intCast(index));
        }
        self.close_listeners();
        self.arrivals_end_ms = null;
    }

    /// What a drain allows is less than what is allowed otherwise.
    fn shorten_deadline(self: *Poller, connection: *Connection) void {
        const receive_by_ms = self.drain_began_ms + drain_receive_ms;
        const limit_ms = switch (connection.state) {
            // One that begins late has a moment all the same.
            .reading_proxy_header, .reading_head => if (connection.exchange == null)
                return
            else
                @max(receive_by_ms, self.now_ms + late_head_ms),
            .reading_body => receive_by_ms,
            // A client that has sent all that it wanted to needs no time to stop sending.
            .lingering => if (!connection.came_whole) return else self.now_ms + drain_linger_ms,
            // One that has stalled for longer would only keep the drain from its end.
            .writing => connection.stall.since_ms +| self.server.options.drain_timeout_ms,
            .free, .queued, .running, .suspended, .closing => return,
        };
        connection.deadline_ms = @min(connection.deadline_ms, limit_ms);
    }

    fn close_listeners(self: *Poller) void {
        for (self.listeners) |*listener| self.close_listener(listener);
    }

    fn close_listener(self: *Poller, listener: *Listener) void {
        if (listener.fd == sys.no_fd) return;
        self.reactor.unregister(listener.fd);
        forks.lock();
        defer forks.unlock();
        sys.close(listener.fd);
        listener.* = .{ .fd = sys.no_fd, .is_shared = false };
    }

    /// In a process that was forked from the server's, which has a copy of every descriptor: what
    /// the server closes would stay open, and the kernel would tell no client of it.
    pub fn close_in_child(self: *Poller) void {
        self.reactor.deinit();
        for (self.listeners) |*listener| forks.close_for_good(&listener.fd);
        for (self.slots.touched()) |*connection| forks.close_for_good(&connection.fd);
    }

    /// Closes the connections that have been idle for a moment, of which the drain's begin is the
    /// first.
    fn close_idle(self: *Poller) void {
        self.idle_end_ms = null;
        for (self.slots.touched()) |*connection| {
            if (connection.fd == sys.no_fd) continue;
            if (connection.turn.load(.seq_cst) & Turn.worker != 0) continue;
            if (!connection.is_idle()) continue;
            // Whoever made it idle set its deadline then.
            const idle_ms = connection.deadline_ms -| self.server.options.keep_alive_timeout_ms;
            const end_ms = @max(idle_ms, self.drain_began_ms) + idle_grace_ms;
            if (self.now_ms >= end_ms) {
                self.mark_closing(connection);
            } else {
                self.idle_end_ms = @min(self.idle_end_ms orelse end_ms, end_ms);
            }
        }
    }

    fn end_drain(self: *Poller) void {
        self.close_arrivals();
        if (self.slots.in_use == 0 and self.arrivals_end_ms == null) {
            self.server.end(.drained);
        } else if (self.now_ms >= self.drain_deadline_ms) {
            self.server.end(.timed_out);
        }
    }
};
