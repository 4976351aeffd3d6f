//! Which clients go when room is short: those that have taken nothing of their response longest.
//!
//! A client that takes nothing may be a proxy that has spooled enough, a video that is paused or a
//! suspended laptop. It costs a slot, some memory and, in `write()`, a thread, so it stays until
//! one of these is short (`Need`). `timeouts.write` is only a late bound.
//!
//! What a client has taken is what its kernel has acknowledged (`sys.unacknowledged`): one that
//! drains a full send buffer slowly makes progress though nothing more can be sent for a long time.
//! It is looked at once a second, and only while there are responses that wait for clients.
//!
//! `Stall` belongs to the connection's owner. `Stalled` belongs to the poller. A `ClientWait` is
//! shared by a worker and the poller, under its mutex. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");
const connection_module = @import("connection.zig");
const kernel_memory = @import("kernel_memory.zig");
const notices_module = @import("notices.zig");
const Connection = connection_module.Connection;
const Poller = @import("poller.zig").Poller;
const Turn = connection_module.Turn;

/// A client that has taken something within this time is never evicted: less is a lost packet, or
/// a machine that was busy.
pub const stalled_ms_min = 1000;
/// How often the acknowledgments are looked at; more often where `timeouts.write` is short.
const look_ms_max = 1000;
const look_ms_min = 20;
/// How often a thread that waits in `write()` looks whether it is to give its client up.
const wait_step_ms = 100;
/// One scan of all slots finds so many clients to evict.
const candidates_max = 64;
/// How long a client that was evicted may take to close (its producer may have to end) before the
/// next one is.
const closing_ms_max = 200;

/// What room is short.
pub const Need = enum {
    /// `limits.connections`.
    connections,
    descriptors,
    /// `limits.buffer_memory`.
    buffers,
    /// The kernel's memory for TCP, or this process' share of the memory.
    kernel_memory,
    /// `concurrency.threads`, while requests wait for one.
    threads,

    fn notice(self: Need) notices_module.Kind {
        return switch (self) {
            .connections => .stalled_for_connections,
            .descriptors => .stalled_for_descriptors,
            .buffers => .stalled_for_buffers,
            .kernel_memory => .stalled_for_kernel_memory,
            .threads => .stalled_for_threads,
        };
    }
};

/// Since when a client has taken nothing.
pub const Stall = struct {
    /// When it took something last, as far as is known (`monotonic_ms`).
    since_ms: u64 = 0,
    /// What it had not acknowledged then.
    unacknowledged: u32 = 0,

    /// Nothing more can be sent for now.
    pub fn begin(self: *Stall, fd: sys.Fd, now_ms: u64) void {
        self.* = .{ .since_ms = now_ms, .unacknowledged = sys.unacknowledged(fd) orelse 0 };
    }

    /// Whether the client has acknowledged anything since it was looked at last. Nothing may have
    /// been sent meanwhile.
    pub fn has_moved(self: *Stall, fd: sys.Fd, now_ms: u64) bool {
        const count = sys.unacknowledged(fd) orelse return false;
        if (count >= self.unacknowledged) return false;
        self.* = .{ .since_ms = now_ms, .unacknowledged = count };
        return true;
    }
};

// ---- A worker that waits for its client ---------------------------------------------------------

/// The workers whose clients have taken nothing for `stalled_ms_min`.
pub const Writers = struct {
    count: std.atomic.Value(u32) = .init(0),
    context: *anyopaque,
    /// Tells the poller that there is one more.
    wake: *const fn (*anyopaque) void,
};

/// The wait of one worker, which the poller can end.
pub const ClientWait = struct {
    /// Null where nobody evicts.
    writers: ?*Writers = null,
    /// Whether the server drains; null where it never does.
    is_draining: ?*const std.atomic.Value(bool) = null,
    mutex: std.Thread.Mutex = .{},
    // Under the mutex.
    connection: ?*Connection = null,
    since_ms: u64 = 0,
    is_evicted: bool = false,

    pub const End = enum { ready, timed_out, evicted };

    pub const Limits = struct {
        /// Without progress.
        timeout_ms: u64,
        /// The same once the server drains.
        drain_timeout_ms: u64,
    };

    fn timeout_ms(self: *const ClientWait, limits: Limits) u64 {
        const is_draining = self.is_draining orelse return limits.timeout_ms;
        if (!is_draining.load(.acquire)) return limits.timeout_ms;
        return @min(limits.timeout_ms, limits.drain_timeout_ms);
    }

    /// Waits until the socket takes more. The worker; without the GIL.
    pub fn wait(self: *ClientWait, connection: *Connection, limits: Limits) End {
        const fd = connection.fd;
        var stall: Stall = .{};
        stall.begin(fd, sys.monotonic_ms());
        const first_ms = @min(self.timeout_ms(limits), stalled_ms_min);
        if (sys.wait_ready(fd, .writable, first_ms)) return .ready;
        _ = stall.has_moved(fd, sys.monotonic_ms());
        self.begin(connection, stall.since_ms);
        const end = self.wait_long(fd, &stall, limits);
        return if (self.leave()) .evicted else end;
    }

    fn wait_long(self: *ClientWait, fd: sys.Fd, stall: *Stall, limits: Limits) End {
        while (true) {
            const stalled_ms = sys.monotonic_ms() -| stall.since_ms;
            const limit_ms = self.timeout_ms(limits);
            if (stalled_ms >= limit_ms) return .timed_out;
            const step_ms = @min(wait_step_ms, limit_ms - stalled_ms);
            if (sys.wait_ready(fd, .writable, step_ms)) return .ready;
            const has_moved = stall.has_moved(fd, sys.monotonic_ms());
            if (self.note(if (has_moved) stall.since_ms else null)) return .evicted;
        }
    }

    fn begin(self: *ClientWait, connection: *Connection, since_ms: u64) void {
        {
            self.mutex.lock();
            defer self.mutex.unlock();
            self.connection = connection;
            self.since_ms = since_ms;
            self.is_evicted = false;
        }
        const writers = self.writers orelse return;
        _ = writers.count.fetchAdd(1, .seq_cst);
        writers.wake(writers.context);
    }

    /// Whether it has been evicted.
    fn note(self: *ClientWait, since_ms: ?u64) bool {
        self.mutex.lock();
        defer self.mutex.unlock();
        if (since_ms) |time| self.since_ms = time;
        return self.is_evicted;
    }

    fn leave(self: *ClientWait) bool {
        if (self.writers) |writers| _ = writers.count.fetchSub(1, .seq_cst);
        self.mutex.lock();
        defer self.mutex.unlock();
        self.connection = null;
        return self.is_evicted;
    }

    /// Since when the client has taken nothing; null when nobody waits, or it was evicted. The
    /// poller.
    fn stalled_since(self: *ClientWait) ?u64 {
        self.mutex.lock();
        defer self.mutex.unlock();
        return if (self.connection == null or self.is_evicted) null else self.since_ms;
    }

    const Evicted = struct { token: u64, unacknowledged: u32 };

    /// Ends the wait, unless the client has taken something since. The poller.
    fn evict(self: *ClientWait, since_ms: u64) ?Evicted {
        self.mutex.lock();
        defer self.mutex.unlock();
        const connection = self.connection orelse return null;
        if (self.is_evicted or self.since_ms != since_ms) return null;
        self.is_evicted = true;
        return .{
            .token = connection.token(),
            .unacknowledged = sys.unacknowledged(connection.fd) orelse 0,
        };
    }
};

// ---- The poller ---------------------------------------------------------------------------------

const Candidate = struct {
    since_ms: u64,
    who: union(enum) {
        /// A token.
        connection: u64,
        /// The number of a crew whose thread waits.
        writer: u32,
    },
};

pub const Stalled = struct {
    /// Of the last scan, the longest stalled last.
    candidates: [candidates_max]Candidate = undefined,
    count: usize = 0,
    /// What the last scan was for.
    need: Need = .connections,
    /// A scan before that finds nobody.
    scan_ms: std.EnumArray(Need, u64) = .initFill(0),
    /// The connection that was evicted last, as long as it has to be waited for.
    closing: ?u64 = null,
    closing_end_ms: u64 = 0,
    /// When the acknowledgments are looked at next; null while there is nothing to look at.
    look_ms: ?u64 = null,
    /// When a thread may be freed again.
    threads_ms: u64 = 0,
    kernel: kernel_memory.KernelMemory = .{},

    /// Whether there is somebody to evict for a new connection.
    pub fn has_any(self: *Stalled, poller: *Poller) bool {
        if (self.is_closing(poller)) return false;
        return self.refill(poller, .connections);
    }

    /// Whether a client is being evicted, or has been found that can be.
    pub fn makes_room(self: *const Stalled) bool {
        return self.closing != null or self.count > 0;
    }

    /// When there may be somebody to evict for a new connection; null when nobody may be soon.
    pub fn next_ms(self: *const Stalled) ?u64 {
        if (self.look_ms == null) return null;
        const scan_ms = self.scan_ms.get(.connections);
        return if (self.closing != null) @max(scan_ms, self.closing_end_ms) else scan_ms;
    }

    /// Evicts the client that has stalled longest, of those that `need` is about. What it frees
    /// may be free only when its producer has ended. False when nobody can go now.
    pub fn evict(self: *Stalled, poller: *Poller, need: Need) bool {
        if (self.is_closing(poller)) return false;
        return self.evict_next(poller, need) != null;
    }

    /// The same without waiting for the last one; how much the kernel held for it.
    fn evict_next(self: *Stalled, poller: *Poller, need: Need) ?u32 {
        while (self.refill(poller, need)) {
            self.count -= 1;
            const candidate = self.candidates[self.count];
            const held = switch (candidate.who) {
                .connection => |token| evict_connection(poller, token, candidate.since_ms),
                .writer => |number| self.evict_writer(poller, number, candidate.since_ms),
            } orelse continue;
            note(poller, need);
            return held;
        }
        return null;
    }

    fn note(poller: *Poller, need: Need) void {
        poller.lane.shard.count_closed(.stalled);
        poller.server.notify(need.notice(), &sys.no_address);
    }

    /// The connection evicted last keeps its slot until its worker has let go of it.
    fn is_closing(self: *Stalled, poller: *const Poller) bool {
        const token = self.closing orelse return false;
        if (poller.slots.find(token) != null and poller.now_ms < self.closing_end_ms) return true;
        self.closing = null;
        return false;
    }

    fn wait_for(self: *Stalled, token: u64, now_ms: u64) void {
        self.closing = token;
        self.closing_end_ms = now_ms + closing_ms_max;
    }

    fn evict_connection(poller: *Poller, token: u64, since_ms: u64) ?u32 {
        const connection = poller.slots.find(token) orelse return null;
        if (stalled_since(connection) != since_ms) return null;
        if (connection.stall.has_moved(connection.fd, poller.now_ms)) return null;
        const held = connection.stall.unacknowledged;
        connection.resets = true;
        if (connection.exchange) |exchange| {
            exchange.record.evicted = true;
            // A parked producer only has to be closed; what was ahead of its client is free now.
            exchange.output.deinit(poller.server.gpa);
            if (exchange.continuation != null) {
                poller.stalled.wait_for(token, poller.now_ms);
            }
        }
        poller.mark_closing(connection);
        return held;
    }

    fn evict_writer(self: *Stalled, poller: *Poller, number: u32, since_ms: u64) ?u32 {
        const client_wait = &poller.server.crews[number].reply.client_wait;
        const evicted = client_wait.evict(since_ms) orelse return null;
        self.wait_for(evicted.token, poller.now_ms);
        return evicted.unacknowledged;
    }

    // ---- Finding the longest stalled -----------------------------------------------------------

    /// Whether there is a candidate; looks for some if that can have changed.
    fn refill(self: *Stalled, poller: *Poller, need: Need) bool {
        if (self.need == need and self.count > 0) return true;
        if (poller.now_ms < self.scan_ms.get(need)) return false;
        self.need = need;
        self.count = 0;
        self.scan(poller, need);
        return self.count > 0;
    }

    fn scan(self: *Stalled, poller: *Poller, need: Need) void {
        const server = poller.server;
        // Nobody whose client takes something now can go before `stalled_ms_min` is over.
        var oldest_ms = poller.now_ms;
        var is_any_held = false;
        if (need != .threads) for (poller.slots.touched()) |*connection| {
            const since_ms = stalled_since(connection) orelse continue;
            if (need == .buffers) {
                if (!poller.holds_share(connection)) continue;
            } else if (poller.waits_for_thread(connection)) {
                // It would keep its slot, its descriptor and what is in the kernel.
                is_any_held = true;
                continue;
            }
            oldest_ms = @min(oldest_ms, since_ms);
            self.add(poller.now_ms, .{
                .since_ms = since_ms,
                .who = .{ .connection = connection.token() },
            });
        };
        if (server.writers.count.load(.seq_cst) > 0) for (server.crews, 0..) |*crew, number| {
            const since_ms = crew.reply.client_wait.stalled_since() orelse continue;
            oldest_ms = @min(oldest_ms, since_ms);
            self.add(poller.now_ms, .{
                .since_ms = since_ms,
                .who = .{ .writer = @intCast(number) },
            });
        };
        var next_scan_ms = if (self.count > 0) 0 else oldest_ms + stalled_ms_min;
        if (is_any_held) next_scan_ms = @min(next_scan_ms, poller.now_ms + closing_ms_max);
        self.scan_ms.set(need, next_scan_ms);
    }

    /// Keeps those that have stalled longest, in order.
    fn add(self: *Stalled, now_ms: u64, candidate: Candidate) void {
        if (now_ms -| candidate.since_ms < stalled_ms_min) return;
        const kept = self.candidates[0..self.count];
        var place: usize = 0;
        while (place < kept.len and kept[place].since_ms > candidate.since_ms) place += 1;
        if (self.count == candidates_max) {
            // The first is the one that has stalled for the shortest time.
            if (place == 0) return;
            std.mem.copyForwards(Candidate, kept[0 .. place - 1], kept[1..place]);
            kept[place - 1] = candidate;
            return;
        }
        self.count += 1;
        const rest = self.candidates[place..self.count];
        std.mem.copyBackwards(Candidate, rest[1..], rest[0 .. rest.len - 1]);
        rest[0] = candidate;
    }

    // ---- Looking -------------------------------------------------------------------------------

    /// There is something to look at from now on.
    pub fn watch(self: *Stalled, poller: *const Poller) void {
        if (self.look_ms == null) self.look_ms = poller.now_ms + look_interval_ms(poller);
    }

    fn look_interval_ms(poller: *const Poller) u64 {
        const part_ms = poller.server.options.write_timeout_ms / 8;
        return std.math.clamp(part_ms, look_ms_min, look_ms_max);
    }

    /// Looks at what clients have acknowledged, if it is time to, and at the kernel's memory.
    pub fn look(self: *Stalled, poller: *Poller) void {
        const time_ms = self.look_ms orelse return;
        if (poller.now_ms < time_ms) return;
        const server = poller.server;
        server.watches_stalled.store(false, .seq_cst);
        var held: u64 = 0;
        var is_any = server.writers.count.load(.seq_cst) > 0;
        for (poller.slots.touched()) |*connection| {
            if (stalled_since(connection) == null) continue;
            is_any = true;
            if (connection.stall.has_moved(connection.fd, poller.now_ms)) {
                if (connection.state == .writing) poller.set_write_deadline(connection);
            }
            held += connection.stall.unacknowledged;
        }
        self.look_ms = if (is_any) poller.now_ms + look_interval_ms(poller) else null;
        if (!is_any) return;
        server.watches_stalled.store(true, .seq_cst);
        self.relieve_kernel(poller, held);
    }

    fn relieve_kernel(self: *Stalled, poller: *Poller, held: u64) void {
        var excess = self.kernel.excess(held, poller.server.options.socket_memory_bytes);
        while (excess > 0) {
            const freed = self.evict_next(poller, .kernel_memory) orelse return;
            excess -|= @max(freed, std.heap.pageSize());
        }
    }

    /// Evicts holders of `limits.buffer_memory` until there is room again.
    pub fn relieve_buffers(self: *Stalled, poller: *Poller) void {
        while (!poller.server.buffer_memory.has_room()) {
            if (!self.evict(poller, .buffers)) return;
            // What it had is free only then. No event of a batch can mean it any more.
            poller.close_marked();
        }
    }

    /// Ends waits in `write()` that others wait for: requests and parked responses, while no thread
    /// is free for them, and those that can only go on in that very thread.
    pub fn relieve_threads(self: *Stalled, poller: *Poller) void {
        if (poller.now_ms < self.threads_ms) return;
        const server = poller.server;
        for (server.crews, 0..) |*crew, number| {
            const since_ms = crew.reply.client_wait.stalled_since() orelse continue;
            if (poller.now_ms -| since_ms < stalled_ms_min) continue;
            if (!server.scheduler.keeps_waiting(&crew.worker)) continue;
            _ = self.evict_writer(poller, @intCast(number), since_ms) orelse continue;
            note(poller, .threads);
            self.threads_ms = poller.now_ms + closing_ms_max;
        }
        if (poller.now_ms < self.threads_ms) return;
        const waiting = server.scheduler.count_starved();
        for (0..waiting) |_| {
            if (self.evict_next(poller, .threads) == null) return;
            self.threads_ms = poller.now_ms + closing_ms_max;
        }
    }
};

/// Since when the client has taken nothing of what waits for it; null where nothing does, or where
/// the connection is not the poller's.
fn stalled_since(connection: *const Connection) ?u64 {
    if (connection.fd == sys.no_fd) return null;
    if (connection.turn.load(.seq_cst) & Turn.worker != 0) return null;
    return switch (connection.state) {
        .writing => if (connection.exchange) |exchange|
            if (exchange.output.is_empty()) null else connection.stall.since_ms
        else
            null,
        .reading_head, .reading_proxy_header, .lingering => if (connection.has_tail())
            connection.stall.since_ms
        else
            null,
        .free, .reading_body, .queued, .running, .suspended, .closing => null,
    };
}

const testing = std.testing;

test "eviction: the longest stalled are kept, in order" {
    var stalled: Stalled = .{};
    const count = 5 * candidates_max;
    const now_ms = 1_000_000;
    for (0..count) |number| {
        const since_ms = (number * 7919) % count; // each once, in another order
        stalled.add(now_ms, .{ .since_ms = since_ms, .who = .{ .connection = since_ms } });
    }
    stalled.add(now_ms, .{ .since_ms = now_ms - stalled_ms_min + 1, .who = .{ .writer = 0 } });
    try testing.expectEqual(candidates_max, stalled.count);
    for (stalled.candidates, 0..) |candidate, place| {
        try testing.expectEqual(candidates_max - 1 - place, candidate.since_ms);
    }
}

test "eviction: acknowledged bytes are progress, also while nothing more can be sent" {
    const pair = try sys.socket_pair();
    defer for (pair) |fd| sys.close(fd);
    const piece: [4096]u8 = @splat('x');
    while (true) _ = sys.send(pair[0], &piece) catch break;
    var stall: Stall = .{};
    stall.begin(pair[0], 5);
    try testing.expect(!stall.has_moved(pair[0], 6));
    var buffer: [4096]u8 = undefined;
    // Less than makes the socket writable again.
    while (!stall.has_moved(pair[0], 7)) _ = try sys.recv(pair[1], &buffer);
    try testing.expectEqual(7, stall.since_ms);
    try testing.expect(!stall.has_moved(pair[0], 8));
}
