//! One client's connection: a slot that is used again and again, and who owns it now.
//!
//! The poller owns a connection until its request is complete; then the ready queue and a worker
//! do, until the response is written. `turn` says which, and remembers what the poller saw
//! meanwhile. Every other field belongs to the owner, except `fd`, `generation` and `index`, which
//! only the poller changes and only in a free slot. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");
const pages = @import("pages.zig");
const predictor = @import("predictor.zig");
const Exchange = @import("exchange.zig").Exchange;
const Stall = @import("eviction.zig").Stall;
const Worker = @import("scheduler.zig").Worker;

pub const State = enum(u8) {
    /// In the list of free slots.
    free,
    /// A trusted proxy has to say whose connection this is, before the first head. Deadline: head,
    /// from the beginning.
    reading_proxy_header,
    /// Idle or in the middle of a request head. Deadline: keep_alive, or head.
    reading_head,
    /// Deadline: body, anew with each progress.
    reading_body,
    /// In the ready queue. Deadline: queue_timeout, kept by the scheduler.
    queued,
    /// A worker's. No deadline here; the worker bounds its own waits.
    running,
    /// The rest of a response leaves as the client takes it. Deadline: write.
    writing,
    /// Parked until the application's own event. Deadline: the suspension's.
    suspended,
    /// Our side is shut; what the client still sends is dropped until it has read the answer and
    /// closes (RFC 9112 9.6). Deadline: a fixed short one.
    lingering,
    /// To be closed at the end of this batch of events.
    closing,
};

/// What happens when the output has left.
pub const After = enum {
    keep,
    /// In order: the client has time to read the answer.
    close,
    /// The response's producer was parked and goes on.
    proceed,
};

/// The bits of `turn`.
pub const Turn = struct {
    /// The queue or a worker owns the connection.
    pub const worker: u32 = 1;
    /// Seen by the poller meanwhile.
    pub const readable: u32 = 2;
    pub const writable: u32 = 4;
    pub const hangup: u32 = 8;
    pub const broken: u32 = 16;
};

pub const Connection = struct {
    fd: sys.Fd = sys.no_fd,
    index: u32,
    /// Counts the uses of this slot: an event for an earlier use is seen to be stale.
    generation: u32 = 0,
    turn: std.atomic.Value(u32) = .init(0),
    state: State = .free,
    after: After = .keep,
    /// The socket may hold bytes that nobody has been told of again.
    unread: bool = false,
    /// The client has closed its sending side.
    hangup: bool = false,
    /// Its response ends in a way that only a reset can show.
    resets: bool = false,
    /// While it lingers: the client has sent the whole request that was answered.
    came_whole: bool = false,
    /// While it lingers: when it ends, whatever still comes (`monotonic_ms`).
    linger_end_ms: u64 = 0,
    /// Its client still has to take the end of the last answer, which is all in the kernel.
    waits_for_tail: bool = false,
    /// The poller looks at it again soon; `turn` says `worker` until then.
    coming_back: bool = false,
    /// What it says of a client in forwarded fields is believed.
    trusted: bool = false,
    /// An empty line has come before the next request, and gone with its exchange.
    has_skipped_line: bool = false,
    /// Requests have come together since it was last idle.
    pipelines: bool = false,
    /// Which listener it came from.
    listener: u8 = 0,
    /// The peer's; or the client's whom a PROXY header named.
    address: sys.Address = std.mem.zeroes(sys.Address),
    deadline_ms: u64 = 0,
    /// When the last request began, or the connection (`monotonic_ns`).
    active_ns: u64 = 0,
    /// Since when its client has taken nothing; while a response waits for it, in us or in the
    /// kernel.
    stall: Stall = .{},
    requests: u32 = 0,
    /// The next slot in the list of free ones.
    next_free: u32 = 0,
    exchange: ?*Exchange = null,
    /// The next connection in the hand-back list.
    next_handed_back: ?*Connection = null,
    // For the scheduler.
    /// Which handler the request goes to.
    route: predictor.Route = 0,
    /// The client of a parked response has gone, or took nothing for too long.
    abandoned: bool = false,
    /// The worker that must go on with it; null for any.
    worker: ?*Worker = null,
    /// The next in the list of those that have begun; in one of the poller's, before.
    next_own: ?*Connection = null,

    pub fn token(self: *const Connection) u64 {
        return @as(u64, self.generation) << 32 | self.index;
    }

    /// The poller takes the connection back, with what it saw of it meanwhile, and is told that.
    pub fn take_turn(self: *Connection) u32 {
        const seen = self.turn.swap(0, .acq_rel);
        if (seen & Turn.readable != 0) self.unread = true;
        if (seen & Turn.hangup != 0) self.hangup = true;
        return seen;
    }

    /// Whether the client of the running request has gone, or at least will send no more. Its
    /// worker; the poller may not have heard of it yet.
    pub fn client_has_gone(self: *const Connection) bool {
        if (self.hangup) return true;
        const seen = self.turn.load(.acquire);
        return seen & (Turn.hangup | Turn.broken) != 0 or sys.has_ended(self.fd);
    }

    /// It is answered, and what the kernel still holds of the answer is waited for.
    pub fn has_tail(self: *const Connection) bool {
        const may_have = self.is_idle() or self.state == .lingering;
        return may_have and self.waits_for_tail;
    }

    /// Whether what the client says of others (forwarded fields, ids, times) is believed.
    pub fn is_trusted(self: *const Connection) bool {
        return self.trusted;
    }

    /// Nothing has come of a request.
    pub fn is_idle(self: *const Connection) bool {
        const may_be = self.state == .reading_head or self.state == .reading_proxy_header;
        return may_be and self.exchange == null;
    }

    /// Who sent the request in progress: as trusted proxies have told, else whoever connected.
    /// Valid until the request ends.
    pub fn client(self: *const Connection) *const sys.Address {
        if (self.exchange) |exchange| {
            if (exchange.claims) |*claims| if (claims.client) |*address| return address;
        }
        return &self.address;
    }
};

comptime {
    // Ten thousand idle clients are a megabyte and a bit.
    std.debug.assert(@sizeOf(Connection) <= 160);
}

/// All connections there can ever be; memory of a slot is first touched when it is first used.
pub const Slots = struct {
    connections: []Connection,
    /// How many slots were ever used: the ones after have no contents yet.
    used: u32 = 0,
    first_free: u32 = none,
    in_use: u32 = 0,

    const none = std.math.maxInt(u32);

    pub fn init(capacity: u32) error{OutOfMemory}!Slots {
        return .{ .connections = try pages.alloc(Connection, capacity) };
    }

    pub fn deinit(self: *Slots) void {
        pages.free(self.connections);
    }

    /// A free slot with a new generation; null when all are in use.
    pub fn acquire(self: *Slots) ?*Connection {
        if (self.first_free != none) {
            const connection = &self.connections[self.first_free];
            self.first_free = connection.next_free;
            self.in_use += 1;
            return connection;
        }
        if (self.used == self.connections.len) return null;
        const connection = &self.connections[self.used];
        connection.* = .{ .index = self.used };
        self.used += 1;
        self.in_use += 1;
        return connection;
    }

    pub fn release(self: *Slots, connection: *Connection) void {
        // 30 bits: the two highest of a token tell listeners and watched descriptors.
        const generation = (connection.generation + 1) & std.math.maxInt(u30);
        connection.* = .{
            .index = connection.index,
            .generation = generation,
            .next_free = self.first_free,
        };
        self.first_free = connection.index;
        self.in_use -= 1;
    }

    /// The connection that a token of the reactor stands for; null when that one is closed.
    pub fn find(self: *const Slots, token: u64) ?*Connection {
        const index: u32 = @truncate(token);
        if (index >= self.used) return null;
        const connection = &self.connections[index];
        if (connection.token() != token or connection.fd == sys.no_fd) return null;
        return connection;
    }

    /// All slots ever used, free ones among them.
    pub fn touched(self: *const Slots) []Connection {
        return self.connections[0..self.used];
    }
};

const testing = std.testing;

test "a token of an earlier use finds nothing" {
    var slots = try Slots.init(2);
    defer slots.deinit();
    const first = slots.acquire().?;
    first.fd = 10;
    const token = first.token();
    try testing.expectEqual(first, slots.find(token).?);
    slots.release(first);
    try testing.expectEqual(null, slots.find(token));
    const again = slots.acquire().?;
    again.fd = 11;
    try testing.expectEqual(first, again);
    try testing.expectEqual(null, slots.find(token));
    try testing.expectEqual(again, slots.find(again.token()).?);
}

test "slots run out and come back" {
    var slots = try Slots.init(3);
    defer slots.deinit();
    var taken: [3]*Connection = undefined;
    for (&taken) |*slot| slot.* = slots.acquire().?;
    try testing.expectEqual(null, slots.acquire());
    slots.release(taken[1]);
    try testing.expectEqual(taken[1], slots.acquire().?);
    try testing.expectEqual(3, slots.in_use);
}
