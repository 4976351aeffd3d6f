//! Application calls that take longer than `timeouts.request`, and what is done about them.
//!
//! A `Call` belongs to a worker and speaks of the call that it is in. Whoever polls looks at all of
//! them when the first can be overdue; it needs no GIL, so it also sees a handler that holds it.
//! It may take a call's response over, with one compare-and-swap from `silent` to `taken`: then it
//! answers 504, and whatever the worker would still send is dropped. The worker claims the right to
//! send by the same word, from `silent` to `speaking`; one of the two is first. The connection
//! stays the worker's, who hands it back when the call ends. What is found goes to the launcher,
//! which logs the Python stack or raises in the thread. Times are those of `monotonic_ms`.

const std = @import("std");
const sys = @import("sys.zig");
const date_module = @import("date.zig");
const refusal_module = @import("refusal.zig");
const Connection = @import("connection.zig").Connection;
const in_flight = @import("in_flight.zig");
const request_ids = @import("request_id.zig");
const Current = in_flight.Current;
const RequestInfo = in_flight.RequestInfo;
const Lane = @import("observer.zig").Lane;
const Server = @import("server.zig").Server;

pub const status = 504;

/// The values of the option, in the order of the key's words.
pub const Action = enum(u8) { log, answer, raise };

/// How soon to look again at a call that was sending just then.
const retry_ms = 10;

pub const State = enum(u3) {
    over,
    /// The application has been called and nothing of its answer has been sent.
    silent,
    /// Something comes before the answer: an interim response.
    sending,
    /// The answer is the worker's to send, part of it has been.
    speaking,
    /// The poller has answered.
    taken,
};

const Word = packed struct(u64) {
    state: State,
    /// Counts the worker's calls; a response that parks and goes on is several.
    number: u61,
};

pub const Call = struct {
    word: std.atomic.Value(u64) = .init(0),
    /// When the application was called, or last gave something to send.
    since_ms: std.atomic.Value(u64) = .init(0),
    connection: std.atomic.Value(?*Connection) = .init(null),
    /// How long the head of the poller's answer is, for the log; written before it is taken.
    answer_head_bytes: std.atomic.Value(u32) = .init(0),
    /// How much of the answer was sent; `pending` until that is known.
    answer_sent: std.atomic.Value(u32) = .init(0),
    /// The last call that was found overdue; the poller's.
    found: u61 = 0,

    const pending = std.math.maxInt(u32);

    fn load(self: *const Call) Word {
        return @bitCast(self.word.load(.acquire));
    }

    // ---- The worker ----------------------------------------------------------------------------

    /// The application is about to be called, or to go on with its response.
    pub fn begin(self: *Call, connection: *Connection, is_speaking: bool, now_ms: u64) void {
        const before = self.load();
        self.connection.store(connection, .release);
        self.since_ms.store(now_ms, .release);
        const state: State = if (is_speaking) .speaking else .silent;
        const word: Word = .{ .state = state, .number = before.number +% 1 };
        self.word.store(@bitCast(word), .release);
    }

    /// The number of the call in progress.
    pub fn number(self: *const Call) u64 {
        return self.load().number;
    }

    /// Whether the call of this number is still in progress. Any thread.
    pub fn is_running(self: *const Call, wanted: u64) bool {
        const word = self.load();
        return word.number == wanted and word.state != .over;
    }

    /// Before the answer is sent. False when the poller has answered.
    pub fn claim(self: *Call) bool {
        return self.may_speak() or self.move(.silent, .speaking);
    }

    /// Also while another thread of the application waits for the body, having sent 100: the poller
    /// leaves such a call alone, and its `end_interim` changes nothing any more.
    fn may_speak(self: *Call) bool {
        return self.load().state == .speaking or self.move(.sending, .speaking);
    }

    /// Before an interim response is sent. False when the poller has answered.
    pub fn begin_interim(self: *Call) bool {
        return self.may_speak() or self.move(.silent, .sending);
    }

    /// Where the client has not taken all of it, only the worker can go on.
    pub fn end_interim(self: *Call, is_sent: bool) void {
        _ = self.move(.sending, if (is_sent) .silent else .speaking);
        self.touch(sys.monotonic_ms());
    }

    /// The application has given something, or its client's slowness is over.
    pub fn touch(self: *Call, now_ms: u64) void {
        self.since_ms.store(now_ms, .release);
    }

    pub fn is_taken(self: *const Call) bool {
        return self.load().state == .taken;
    }

    /// The call is over; true when the poller has answered.
    pub fn end(self: *Call) bool {
        var word = self.load();
        word.state = .over;
        const before: Word = @bitCast(self.word.swap(@bitCast(word), .acq_rel));
        return before.state == .taken;
    }

    /// What was sent of the poller's answer, once the call is taken. The poller is about to send
    /// it, or has: the wait is for a system call that does not block.
    pub fn sent_of_answer(self: *Call) struct { bytes: u32, head_bytes: u32 } {
        var bytes = self.answer_sent.load(.acquire);
        while (bytes == pending) : (bytes = self.answer_sent.load(.acquire)) {
            std.Thread.Futex.wait(&self.answer_sent, pending);
        }
        const head_bytes = self.answer_head_bytes.load(.monotonic);
        return .{ .bytes = bytes, .head_bytes = @min(bytes, head_bytes) };
    }

    fn move(self: *Call, from: State, to: State) bool {
        var word = self.load();
        word.state = from;
        const expected: u64 = @bitCast(word);
        word.state = to;
        return self.word.cmpxchgStrong(expected, @bitCast(word), .acq_rel, .acquire) == null;
    }

    // ---- The poller ----------------------------------------------------------------------------

    fn tell_sent(self: *Call, bytes: usize) void {
        self.answer_sent.store(@intCast(bytes), .release);
        std.Thread.Futex.wake(&self.answer_sent, 1);
    }

    /// Takes the response over, if it is this call and nothing has been sent.
    fn take(self: *Call, seen: Word) bool {
        var word = seen;
        word.state = .taken;
        const expected: u64 = @bitCast(seen);
        return self.word.cmpxchgStrong(expected, @bitCast(word), .acq_rel, .acquire) == null;
    }
};

/// What the launcher is told of a call.
pub const Report = struct {
    request: RequestInfo,
    worker: u32,
    call: u64,
    waited_ms: u64,
    answered: bool,
};

/// Reports that the launcher has not taken yet. Any thread.
pub const Reports = struct {
    mutex: std.Thread.Mutex = .{},
    entries: []Report,
    count: usize = 0,

    fn add(self: *Reports, report: Report) void {
        self.mutex.lock();
        defer self.mutex.unlock();
        // A launcher that does not come has the GIL to wait for; what is lost is in the counter.
        if (self.count == self.entries.len) return;
        self.entries[self.count] = report;
        self.count += 1;
    }

    /// The oldest.
    pub fn take(self: *Reports) ?Report {
        self.mutex.lock();
        defer self.mutex.unlock();
        if (self.count == 0) return null;
        const first = self.entries[0];
        std.mem.copyForwards(Report, self.entries[0..], self.entries[1..self.count]);
        self.count -= 1;
        return first;
    }
};

/// Finds the calls that are overdue. Returns when to look again. The poller.
pub fn look(server: *Server, lane: *Lane, date: *date_module.Date, now_ms: u64) u64 {
    const limit_ms = server.options.request_timeout_ms;
    // No call that begins later is overdue before that.
    var next_ms = now_ms + limit_ms;
    for (server.crews, 0..) |*crew, index| {
        const seen = crew.call.load();
        if (seen.state == .over or crew.call.found == seen.number) continue;
        // Waiting for the client: that has a timeout of its own, and the time begins anew after.
        if (crew.current.phase.load(.acquire) != .app) continue;
        const due_ms = crew.call.since_ms.load(.acquire) + limit_ms;
        if (due_ms > now_ms) {
            next_ms = @min(next_ms, due_ms);
            continue;
        }
        var report: Report = .{
            .request = undefined,
            .worker = @intCast(index),
            .call = seen.number,
            .waited_ms = now_ms - (due_ms - limit_ms),
            .answered = false,
        };
        const prefix = &server.pool.id_prefix;
        const is_known = describe(&crew.current, &crew.call, &report, prefix);
        if (!is_known or !act(server, &crew.call, seen, &report, lane, date)) {
            next_ms = @min(next_ms, now_ms + retry_ms);
            continue;
        }
        crew.call.found = seen.number;
        lane.shard.count_timeout(.app);
        server.overdue.add(report);
        server.tell_launcher();
    }
    return next_ms;
}

/// Reads the request that the report's call is for. False when it is another one's: the worker may
/// be in its next call by now, so what was read counts only if that call is still in progress.
fn describe(
    current: *const Current,
    call: *const Call,
    report: *Report,
    id_prefix: *const [request_ids.prefix_bytes]u8,
) bool {
    return current.read(&report.request, id_prefix, sys.monotonic_ns()) and
        call.is_running(report.call);
}

/// Answers where it may; false when it has to be tried again.
fn act(
    server: *Server,
    call: *Call,
    seen: Word,
    report: *Report,
    lane: *Lane,
    date: *date_module.Date,
) bool {
    if (server.options.request_action == @intFromEnum(Action.log)) return true;
    switch (seen.state) {
        .speaking => return true,
        .sending, .over, .taken => return false,
        .silent => {},
    }
    const connection = call.connection.load(.acquire).?;
    var buffer: [refusal_module.bytes_max]u8 = undefined;
    const refusal: refusal_module.Refusal = .{
        .status = status,
        .reason = "request_timeout",
        .without_body = std.mem.eql(u8, report.request.method.slice(), "HEAD"),
        .request_id = report.request.request_id.slice(),
    };
    const text = refusal_module.write(&buffer, refusal, date.at(sys.realtime_seconds()));
    const head_bytes = std.mem.indexOf(u8, text, "\r\n\r\n").? + 4;
    call.answer_sent.store(Call.pending, .monotonic);
    call.answer_head_bytes.store(@intCast(head_bytes), .monotonic);
    if (!call.take(seen)) return false;
    report.answered = true;
    // The worker owns the connection and what is kept for it; a socket that is full at this point
    // belongs to a client that reads nothing.
    const sent = sys.send(connection.fd, text) catch 0;
    call.tell_sent(sent);
    lane.shard.bytes_sent.add(sent);
    sys.shutdown_send(connection.fd);
    return true;
}

const testing = std.testing;
const exchange_module = @import("exchange.zig");

test "overdue: one of worker and poller has the response" {
    var call: Call = .{};
    var connection: Connection = .{ .index = 0 };
    call.begin(&connection, false, 0);
    try testing.expect(call.take(call.load()));
    try testing.expect(!call.claim());
    try testing.expect(!call.begin_interim());
    try testing.expect(call.is_taken());
    try testing.expect(call.end());
    call.begin(&connection, false, 0);
    const seen = call.load();
    try testing.expect(call.claim());
    try testing.expect(call.claim());
    try testing.expect(!call.take(seen));
    try testing.expect(!call.end());
}

test "overdue: what the poller saw of an earlier call takes nothing of the next" {
    var call: Call = .{};
    var connection: Connection = .{ .index = 0 };
    call.begin(&connection, false, 0);
    const seen = call.load();
    try testing.expect(!call.end());
    try testing.expect(!call.take(seen));
    call.begin(&connection, false, 0);
    try testing.expect(!call.take(seen));
    try testing.expect(call.claim());
}

test "overdue: a call is not reported with the request of the next one" {
    var pool: exchange_module.Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 };
    defer pool.deinit();
    const exchange = try pool.acquire();
    defer pool.release(exchange);
    exchange.record.begin(1, 1);
    var connection: Connection = .{ .index = 0 };
    var call: Call = .{};
    var current: Current = .{};
    current.set(&connection, exchange);
    call.begin(&connection, false, 0);
    var report: Report = .{
        .request = undefined,
        .worker = 0,
        .call = call.load().number,
        .waited_ms = 0,
        .answered = false,
    };
    try testing.expect(describe(&current, &call, &report, &pool.id_prefix));
    try testing.expect(!call.end());
    try testing.expect(!describe(&current, &call, &report, &pool.id_prefix));
    call.begin(&connection, false, 0);
    try testing.expect(!describe(&current, &call, &report, &pool.id_prefix));
}

test "overdue: what was not sent of the answer is not counted" {
    var call: Call = .{};
    var connection: Connection = .{ .index = 0 };
    call.begin(&connection, false, 0);
    call.answer_sent.store(Call.pending, .monotonic);
    call.answer_head_bytes.store(100, .monotonic);
    try testing.expect(call.take(call.load()));
    const poller = try std.Thread.spawn(.{}, struct {
        fn send(taken: *Call) void {
            sys.sleep_ms(20);
            taken.tell_sent(40);
        }
    }.send, .{&call});
    defer poller.join();
    try testing.expect(call.end());
    const sent = call.sent_of_answer();
    try testing.expectEqual(40, sent.bytes);
    try testing.expectEqual(40, sent.head_bytes);
}

test "overdue: an interim response is not interrupted" {
    var call: Call = .{};
    var connection: Connection = .{ .index = 0 };
    call.begin(&connection, false, 0);
    try testing.expect(call.begin_interim());
    try testing.expectEqual(State.sending, call.load().state);
    call.end_interim(true);
    try testing.expect(call.take(call.load()));
    call.end_interim(true);
    try testing.expect(call.is_taken());
    call.begin(&connection, false, 0);
    try testing.expect(call.begin_interim());
    // Half of it is still to be sent: an answer of somebody else's would come in the middle.
    call.end_interim(false);
    try testing.expectEqual(State.speaking, call.load().state);
    try testing.expect(call.begin_interim());
    call.end_interim(true);
    try testing.expectEqual(State.speaking, call.load().state);
}

test "overdue: a response may begin while another thread waits for the body" {
    var call: Call = .{};
    var connection: Connection = .{ .index = 0 };
    for ([_]*const fn (*Call) bool{ Call.claim, Call.begin_interim }) |speak| {
        call.begin(&connection, false, 0);
        try testing.expect(call.begin_interim());
        try testing.expect(speak(&call));
        // The thread has its body now.
        call.end_interim(true);
        try testing.expectEqual(State.speaking, call.load().state);
        try testing.expect(!call.end());
    }
}
