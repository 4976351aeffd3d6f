//! The requests in progress, for another thread to look at without stopping anything.
//!
//! A worker writes down what it runs in a record of its own (`Current`), whose readers try again
//! when it changed meanwhile: a sequence lock, made of atomic words so that there is no data race,
//! and without a locked instruction. Requests in the queue are read under the scheduler's mutex,
//! and those that are being sent, are parked, or have a body that is still coming are in a list
//! with a mutex (`Sending`); only what does not come or go at once is there. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");
const Connection = @import("connection.zig").Connection;
const Exchange = @import("exchange.zig").Exchange;
const Phase = @import("timing.zig").Phase;
const request_id = @import("request_id.zig");

/// Of the request line up to the end of the target; what is longer is cut.
const line_bytes_max = 136;
const method_bytes_max = 24;

pub fn Text(comptime bytes_max: usize) type {
    return struct {
        bytes: [bytes_max]u8,
        len: usize = 0,

        const Self = @This();

        pub fn slice(self: *const Self) []const u8 {
            return self.bytes[0..self.len];
        }

        fn set(self: *Self, text: []const u8) void {
            self.len = @min(text.len, bytes_max);
            @memcpy(self.bytes[0..self.len], text[0..self.len]);
        }
    };
}

/// A copy of what is known of one request.
pub const RequestInfo = struct {
    method: Text(method_bytes_max),
    /// As sent, cut at about 120 bytes.
    target: Text(line_bytes_max),
    /// Empty for a unix socket.
    client: Text(sys.address_text_bytes_max),
    request_id: Text(request_id.given_bytes_max),
    phase: Phase,
    /// Since its first byte.
    age_ns: u64,
    /// The worker that runs it, or ran it last.
    thread: ?u32,

    /// Its owner, or whoever keeps it from changing.
    pub fn read(self: *RequestInfo, connection: *const Connection, now_ns: u64) void {
        const exchange = connection.exchange.?;
        const head = &exchange.head;
        self.method.set(head.method.of(exchange.bytes));
        self.target.set(head.target.of(exchange.bytes));
        self.set_client(connection.client());
        self.request_id.len = exchange.copy_request_id(&self.request_id.bytes);
        self.age_ns = now_ns -| exchange.record.timing.began_ns;
        self.thread = exchange.record.thread;
    }

    fn set_own_id(
        self: *RequestInfo,
        prefix: *const [request_id.prefix_bytes]u8,
        number: u64,
    ) void {
        const bytes = self.request_id.bytes[0..request_id.own_bytes];
        bytes[0..request_id.prefix_bytes].* = prefix.*;
        request_id.write_number(bytes[request_id.prefix_bytes..], number);
        self.request_id.len = request_id.own_bytes;
    }

    fn set_client(self: *RequestInfo, address: *const sys.Address) void {
        var storage: [sys.address_text_bytes_max]u8 = undefined;
        self.client.set(sys.address_text(address, &storage));
    }
};

const Word = std.atomic.Value(u64);
const address_words = (@sizeOf(sys.Address) + 7) / 8;
const line_words = line_bytes_max / 8;
const id_words = request_id.given_bytes_max / 8;

/// What a worker runs. The worker writes, any thread reads.
pub const Current = struct {
    /// Odd while it is being written.
    sequence: Word = .init(0),
    /// 0 when the worker runs nothing.
    began_ns: Word = .init(0),
    number: Word = .init(0),
    lengths: Word = .init(0),
    address: [address_words]Word = @splat(.init(0)),
    line: [line_words]Word = @splat(.init(0)),
    id: [id_words]Word = @splat(.init(0)),
    /// Where its thread is: `app`, or waiting for the client.
    phase: std.atomic.Value(Phase) = .init(.app),

    const Lengths = packed struct(u64) { method: u16, line: u16, id: u16, padding: u16 = 0 };

    /// The worker is about to run this request.
    pub fn set(self: *Current, connection: *const Connection, exchange: *const Exchange) void {
        const head = &exchange.head;
        const sequence = self.sequence.load(.monotonic);
        // Every word below is stored with release, and so after this one for who acquires it.
        self.sequence.store(sequence +% 1, .monotonic);
        // The request line is in one piece: method, space, target.
        const line_start = head.method.start;
        const line_end = @min(head.target.start + head.target.len, line_start + line_bytes_max);
        const given_id = exchange.record.given_id;
        self.lengths.store(@bitCast(Lengths{
            .method = @intCast(@min(head.method.len, method_bytes_max)),
            .line = @intCast(line_end - line_start),
            .id = @intCast(given_id.len),
        }), .release);
        self.set_address(connection.client());
        var at: usize = line_start;
        for (&self.line) |*word| {
            if (at >= line_end) break;
            // The protocol follows, so that there are eight bytes; what is too much is not read.
            word.store(std.mem.readInt(u64, exchange.bytes[at..][0..8], .little), .release);
            at += 8;
        }
        self.number.store(exchange.record.number, .release);
        if (given_id.len > 0) store_words(&self.id, given_id.of(exchange.bytes));
        self.phase.store(.app, .release);
        self.began_ns.store(exchange.record.timing.began_ns, .release);
        self.sequence.store(sequence +% 2, .release);
    }

    fn set_address(self: *Current, address: *const sys.Address) void {
        const bytes = std.mem.asBytes(address);
        if (sys.address_bytes4(address) != null) {
            // Family, port and address.
            self.address[0].store(std.mem.readInt(u64, bytes[0..8], .little), .release);
        } else {
            store_words(&self.address, bytes);
        }
    }

    /// The worker runs nothing any more.
    pub fn clear(self: *Current) void {
        self.began_ns.store(0, .release);
    }

    fn store_words(words: []Word, bytes: []const u8) void {
        var at: usize = 0;
        for (words) |*word| {
            if (at >= bytes.len) return;
            if (bytes.len - at >= 8) {
                word.store(std.mem.readInt(u64, bytes[at..][0..8], .little), .release);
            } else {
                var last: [8]u8 = @splat(0);
                @memcpy(last[0 .. bytes.len - at], bytes[at..]);
                word.store(std.mem.readInt(u64, &last, .little), .release);
            }
            at += 8;
        }
    }

    fn load_words(words: []const Word, bytes: []u8) void {
        for (words, 0..) |*word, index| {
            var text: [8]u8 = undefined;
            std.mem.writeInt(u64, &text, word.load(.acquire), .little);
            const rest = bytes[@min(bytes.len, index * 8)..];
            const count = @min(rest.len, 8);
            @memcpy(rest[0..count], text[0..count]);
        }
    }

    /// Any thread. False when the worker runs nothing; a worker that changes its request all the
    /// time is taken for one that does. `id_prefix` is the pool's.
    pub fn read(
        self: *const Current,
        info: *RequestInfo,
        id_prefix: *const [request_id.prefix_bytes]u8,
        now_ns: u64,
    ) bool {
        for (0..16) |_| {
            const sequence = self.sequence.load(.acquire);
            const began_ns = self.began_ns.load(.acquire);
            if (began_ns == 0) return false;
            const lengths: Lengths = @bitCast(self.lengths.load(.acquire));
            var address: sys.Address = undefined;
            var line: [line_bytes_max]u8 = undefined;
            // What is behind an IPv4 address is of an earlier client, and has no meaning.
            load_words(&self.address, std.mem.asBytes(&address));
            load_words(&self.line, &line);
            if (lengths.id > 0) load_words(&self.id, &info.request_id.bytes);
            const number = self.number.load(.acquire);
            info.phase = self.phase.load(.acquire);
            if (sequence % 2 != 0 or self.sequence.load(.monotonic) != sequence) {
                std.atomic.spinLoopHint();
                continue;
            }
            info.method.set(line[0..lengths.method]);
            // Nothing is left of the target where the method is that long.
            const target_start = @min(lengths.method + 1, lengths.line);
            info.target.set(line[target_start..lengths.line]);
            info.request_id.len = lengths.id;
            if (lengths.id == 0) info.set_own_id(id_prefix, number);
            info.set_client(&address);
            info.age_ns = now_ns -| began_ns;
            return true;
        }
        return false;
    }
};

/// Requests that are with no worker: whose answers a client has not taken yet, those that are
/// parked, and those whose bodies are still coming.
pub const Sending = struct {
    mutex: std.Thread.Mutex = .{},
    // Oldest first.
    first: ?*Exchange = null,
    last: ?*Exchange = null,
    /// Of those that are complete.
    count: u32 = 0,

    /// The connection's owner, before it gives it to another. The phase is what others see.
    pub fn add(self: *Sending, connection: *Connection, phase: Phase) void {
        const exchange = connection.exchange.?;
        if (exchange.sending_connection != null) return;
        self.mutex.lock();
        defer self.mutex.unlock();
        exchange.sending_connection = connection;
        exchange.sending_phase = phase;
        exchange.next_sending = null;
        exchange.previous_sending = self.last;
        if (self.last) |last| last.next_sending = exchange else self.first = exchange;
        self.last = exchange;
        if (phase != .body) self.count += 1;
    }

    /// A response that was parked waits for a worker again: for that which ran it last, or for any.
    /// The owner.
    pub fn requeue(self: *Sending, exchange: *Exchange, is_own: bool) void {
        self.mutex.lock();
        defer self.mutex.unlock();
        exchange.sending_phase = .queue;
        if (!is_own) exchange.record.thread = null;
    }

    /// The owner, before anything of the request changes.
    pub fn remove(self: *Sending, exchange: *Exchange) void {
        if (exchange.sending_connection == null) return;
        self.mutex.lock();
        defer self.mutex.unlock();
        exchange.sending_connection = null;
        if (exchange.previous_sending) |previous| {
            previous.next_sending = exchange.next_sending;
        } else {
            self.first = exchange.next_sending;
        }
        if (exchange.next_sending) |next| {
            next.previous_sending = exchange.previous_sending;
        } else {
            self.last = exchange.previous_sending;
        }
        if (exchange.sending_phase != .body) self.count -= 1;
    }

    /// Any thread.
    pub fn read(self: *Sending, buffer: []RequestInfo, now_ns: u64) usize {
        self.mutex.lock();
        defer self.mutex.unlock();
        var count: usize = 0;
        var next = self.first;
        while (next) |exchange| : (next = exchange.next_sending) {
            if (count == buffer.len) break;
            buffer[count].read(exchange.sending_connection.?, now_ns);
            buffer[count].phase = exchange.sending_phase;
            count += 1;
        }
        return count;
    }

    /// How many complete requests there are. Any thread.
    pub fn size(self: *Sending) u32 {
        self.mutex.lock();
        defer self.mutex.unlock();
        return self.count;
    }
};

const testing = std.testing;
const exchange_module = @import("exchange.zig");

/// An exchange with a parsed request.
fn parsed(pool: *exchange_module.Pool, request: []const u8) !*Exchange {
    const exchange = try pool.acquire();
    errdefer pool.release(exchange);
    @memcpy(exchange.bytes[0..request.len], request);
    exchange.received = @intCast(request.len);
    try testing.expect(try exchange.head.parse(request, .{
        .request_line_bytes_max = 8000,
        .head_bytes_max = 9000,
        .field_lines_max = 8,
    }));
    return exchange;
}

test "in flight: a record gives back what was written" {
    var pool: exchange_module.Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 };
    defer pool.deinit();
    var connection: Connection = .{ .index = 0 };
    var current: Current = .{};
    var info: RequestInfo = undefined;
    try testing.expect(!current.read(&info, &pool.id_prefix, 0));
    const long = "/" ++ "x" ** 200;
    const longer = "Y" ** 150;
    const cases = [_][4][]const u8{
        .{ "GET", "/", "GET", "/" },
        .{ "DELETE", "/users/17?a=b", "DELETE", "/users/17?a=b" },
        .{ "GET", long, "GET", long[0..132] },
        .{ longer, "/", longer[0..24], longer[25..136] },
    };
    for (cases, 1..) |case, number| {
        var storage: [600]u8 = undefined;
        const text = "{s} {s} HTTP/1.1\r\nHost: a\r\n\r\n";
        const request = try std.fmt.bufPrint(&storage, text, .{ case[0], case[1] });
        const exchange = try parsed(&pool, request);
        defer pool.release(exchange);
        exchange.record.begin(1000, number);
        current.set(&connection, exchange);
        try testing.expect(current.read(&info, &pool.id_prefix, 1500));
        try testing.expectEqualStrings(case[2], info.method.slice());
        try testing.expectEqualStrings(case[3], info.target.slice());
        try testing.expectEqualStrings(exchange.request_id(), info.request_id.slice());
        try testing.expectEqual(500, info.age_ns);
        try testing.expectEqual(Phase.app, info.phase);
    }
    current.clear();
    try testing.expect(!current.read(&info, &pool.id_prefix, 0));
}

test "in flight: a reader never sees halves of two requests" {
    var pool: exchange_module.Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 };
    defer pool.deinit();
    var connection: Connection = .{ .index = 0 };
    var current: Current = .{};
    const requests = [_][]const u8{
        "GET /" ++ "a" ** 100 ++ " HTTP/1.0\r\n\r\n",
        "POST /" ++ "b" ** 60 ++ " HTTP/1.0\r\n\r\n",
    };
    var exchanges: [2]*Exchange = undefined;
    for (&exchanges, requests, 1..) |*exchange, request, number| {
        exchange.* = try parsed(&pool, request);
        exchange.*.record.begin(number, number);
    }
    defer for (exchanges) |exchange| pool.release(exchange);
    var stop: std.atomic.Value(bool) = .init(false);
    const writer = try std.Thread.spawn(.{}, struct {
        fn run(one: *Current, client: *Connection, two: *[2]*Exchange, end: *@TypeOf(stop)) void {
            var index: usize = 0;
            while (!end.load(.monotonic)) : (index +%= 1) {
                one.set(client, two[index % 2]);
                if (index % 16 == 0) one.clear();
            }
        }
    }.run, .{ &current, &connection, &exchanges, &stop });
    defer {
        stop.store(true, .monotonic);
        writer.join();
    }
    var info: RequestInfo = undefined;
    var seen: usize = 0;
    const end_ms = sys.monotonic_ms() + 20_000;
    for (0..100_000_000) |count| {
        if (seen == 2000 or (seen > 0 and count > 2_000_000)) break;
        if (!current.read(&info, &pool.id_prefix, 10)) {
            // The writer may have no processor.
            if (count % 1024 == 0 and sys.monotonic_ms() > end_ms) break;
            continue;
        }
        seen += 1;
        const which: usize = if (info.age_ns == 9) 0 else 1;
        const letter = "ab"[which];
        try testing.expectEqualStrings(if (which == 0) "GET" else "POST", info.method.slice());
        const length: usize = if (which == 0) 101 else 61;
        try testing.expectEqual(length, info.target.slice().len);
        for (info.target.slice()[1..]) |byte| try testing.expectEqual(letter, byte);
        const last = info.request_id.slice()[info.request_id.len - 1];
        try testing.expectEqual(@as(u8, '1') + @as(u8, @intCast(which)), last);
    }
    try testing.expect(seen > 0);
}

test "in flight: what is being sent is listed until it is not" {
    var pool: exchange_module.Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 };
    defer pool.deinit();
    var sending: Sending = .{};
    var connections: [3]Connection = undefined;
    for (&connections, 0..) |*connection, index| {
        connection.* = .{ .index = @intCast(index) };
        connection.exchange = try parsed(&pool, "GET /x HTTP/1.0\r\n\r\n");
        connection.exchange.?.record.begin(1, index + 1);
        sending.add(connection, .write);
        sending.add(connection, .app);
    }
    defer for (connections) |connection| pool.release(connection.exchange.?);
    var buffer: [5]RequestInfo = undefined;
    try testing.expectEqual(3, sending.read(&buffer, 2));
    try testing.expectEqual(2, sending.read(buffer[0..2], 2));
    for (buffer[0..3], 0..) |*info, index| {
        try testing.expectEqual(Phase.write, info.phase);
        const last = info.request_id.slice()[info.request_id.len - 1];
        try testing.expectEqual('1' + index, last);
    }
    sending.requeue(connections[1].exchange.?, true);
    try testing.expectEqual(3, sending.read(&buffer, 2));
    try testing.expectEqual(Phase.queue, buffer[1].phase);
    for ([_]usize{ 1, 0, 0, 2 }, [_]u32{ 2, 1, 1, 0 }) |index, left| {
        sending.remove(connections[index].exchange.?);
        try testing.expectEqual(left, sending.size());
        try testing.expectEqual(left, sending.read(&buffer, 2));
    }
}
