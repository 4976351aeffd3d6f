//! One line for each request: Combined Log Format or JSON; and the lines about requests that were
//! refused or took long.
//!
//! A line is made when the request is over, by whoever ends it, from its record and its head; that
//! costs no allocation and no system call. Where lines go is log_writer.zig's. GIL: not needed.

const std = @import("std");
const fields = @import("fields.zig");
const log_text = @import("log_text.zig");
const metrics = @import("metrics.zig");
const reasons = @import("reasons.zig");
const request_ids = @import("request_id.zig");
const timing_module = @import("timing.zig");
const Connection = @import("connection.zig").Connection;
const Exchange = @import("exchange.zig").Exchange;
const Line = log_text.Line;
const Quoting = log_text.Quoting;
const Stamp = log_text.Stamp;
const Phase = timing_module.Phase;

// A client may send much more; a line is for people and their tools.
const method_bytes_max = 64;
const target_bytes_max = 4096;
const field_bytes_max = 1024;

/// Enough for any line: every byte of the texts escaped, and 1 KiB for the rest.
pub const line_bytes_max = 6 * (method_bytes_max + target_bytes_max + 2 * field_bytes_max +
    request_ids.given_bytes_max) + 1024;

/// What only the lines want to know of a request's fields.
const Fields = struct {
    referer: ?[]const u8 = null,
    user_agent: ?[]const u8 = null,
    trace_id: ?[]const u8 = null,

    fn of(exchange: *const Exchange) Fields {
        var found: Fields = .{};
        for (exchange.head.lines()) |line| switch (line.known) {
            .referer => found.referer = line.value.of(exchange.bytes),
            .user_agent => found.user_agent = line.value.of(exchange.bytes),
            .traceparent => {
                found.trace_id = request_ids.trace_id_of(line.value.of(exchange.bytes));
            },
            else => {},
        };
        return found;
    }
};

/// "GET / HTTP/1.1" as far as it was understood; empty where it was not.
const RequestLine = struct {
    method: []const u8,
    target: []const u8,
    /// Null where none was named, or one that is not spoken here.
    protocol: ?[]const u8,

    fn of(exchange: *const Exchange) RequestLine {
        const head = &exchange.head;
        if (head.target.len == 0) return .{ .method = "", .target = "", .protocol = null };
        return .{
            .method = head.method.of(exchange.bytes),
            .target = head.target.of(exchange.bytes),
            .protocol = if (!head.has_version()) null else switch (head.version) {
                .http_1_0 => "HTTP/1.0",
                .http_1_1 => "HTTP/1.1",
            },
        };
    }
};

/// host ident user [time] "request line" status bytes "referer" "user agent", and the request id
/// behind them.
pub fn put_combined(
    line: *Line,
    stamp: *Stamp,
    now_ms: u64,
    connection: *const Connection,
    exchange: *Exchange,
) void {
    const record = &exchange.record;
    const request = RequestLine.of(exchange);
    const found = Fields.of(exchange);
    line.put_address(connection.client());
    line.put(" - - [");
    stamp.put_common(line, now_ms);
    line.put("] \"");
    if (request.method.len > 0) {
        put_method(line, request.method);
        line.put(" ");
        line.put_escaped(request.target, .text, target_bytes_max);
        if (request.protocol) |protocol| {
            line.put(" ");
            line.put(protocol);
        }
    } else {
        line.put("-");
    }
    line.put("\" ");
    line.put_number(record.status);
    line.put(" ");
    line.put_number(record.bytes_sent -| record.head_bytes_sent);
    for ([_]?[]const u8{ found.referer, found.user_agent }) |text| {
        if (text) |value| {
            line.put(" \"");
            line.put_escaped(value, .text, field_bytes_max);
            line.put("\"");
        } else line.put(" \"-\"");
    }
    line.put(" ");
    line.put(exchange.request_id());
    line.put("\n");
}

pub fn put_json(
    line: *Line,
    stamp: *Stamp,
    now_ms: u64,
    connection: *const Connection,
    exchange: *Exchange,
) void {
    line.put("{\"time\":\"");
    stamp.put_plain(line, now_ms);
    line.put("\",");
    put_json_fields(line, connection, exchange);
    line.put("}\n");
}

/// The fields of the contract but the time.
fn put_json_fields(line: *Line, connection: *const Connection, exchange: *Exchange) void {
    const record = &exchange.record;
    const request = RequestLine.of(exchange);
    const found = Fields.of(exchange);
    line.put("\"client\":\"");
    line.put_address(connection.client());
    if (request.method.len > 0) {
        line.put("\",\"method\":\"");
        put_method(line, request.method);
        line.put("\",\"target\":\"");
        line.put_escaped(request.target, .json, target_bytes_max);
        line.put("\",\"protocol\":");
        put_json_text(line, request.protocol, field_bytes_max);
        line.put(",\"status\":");
    } else {
        line.put("\",\"method\":null,\"target\":null,\"protocol\":null,\"status\":");
    }
    line.put_number(record.status);
    line.put(",\"bytes_received\":");
    line.put_number(exchange.bytes_received());
    line.put(",\"bytes_sent\":");
    line.put_number(record.bytes_sent);
    line.put(",\"seconds\":");
    line.put_seconds(record.timing.total_ns());
    inline for (comptime std.enums.values(Phase)) |phase| {
        line.put(",\"" ++ @tagName(phase) ++ "\":");
        line.put_seconds(record.timing.of(phase));
    }
    line.put(",\"thread\":");
    if (record.thread) |thread| line.put_number(thread) else line.put("null");
    line.put(",\"request_id\":\"");
    line.put(exchange.request_id());
    line.put("\",\"trace_id\":");
    put_json_text(line, found.trace_id, field_bytes_max);
    line.put(",\"referer\":");
    put_json_text(line, found.referer, field_bytes_max);
    line.put(",\"user_agent\":");
    put_json_text(line, found.user_agent, field_bytes_max);
}

/// A token, which has nothing to escape (RFC 9110 9.1).
fn put_method(line: *Line, method: []const u8) void {
    line.put(method[0..@min(method.len, method_bytes_max)]);
}

fn put_json_text(line: *Line, text: ?[]const u8, bytes_max: usize) void {
    const known = text orelse return line.put("null");
    line.put("\"");
    line.put_escaped(known, .json, bytes_max);
    line.put("\"");
}

/// The server itself has answered, or has not waited until all of an answer was taken.
pub fn put_refused(
    line: *Line,
    stamp: *Stamp,
    now_ms: u64,
    quoting: Quoting,
    reason: reasons.Reason,
    connection: *const Connection,
    exchange: *Exchange,
) void {
    const record = &exchange.record;
    log_text.begin_record(line, stamp, now_ms, quoting, level_of(reason));
    line.put(if (record.reason != null) "refused " else "cut off ");
    line.put_number(record.status);
    line.put(" ");
    line.put(reasons.name(reason));
    if (quoting == .json) line.put("\",\"reason\":\"");
    if (quoting == .json) line.put(reasons.name(reason));
    end_request_record(line, quoting, connection, exchange);
}

/// The server closed a connection before a request had begun on it.
pub fn put_turned_away(
    line: *Line,
    stamp: *Stamp,
    now_ms: u64,
    quoting: Quoting,
    reason: reasons.Reason,
    connection: *const Connection,
) void {
    log_text.begin_record(line, stamp, now_ms, quoting, level_of(reason));
    line.put("closed ");
    line.put(reasons.name(reason));
    switch (quoting) {
        .text => line.put("; from "),
        .json => {
            line.put("\",\"reason\":\"");
            line.put(reasons.name(reason));
            line.put("\",\"client\":\"");
        },
    }
    line.put_address(connection.client());
    line.put(if (quoting == .json) "\"}\n" else "\n");
}

/// New clients have to wait.
pub fn put_pause(
    line: *Line,
    stamp: *Stamp,
    now_ms: u64,
    quoting: Quoting,
    why: metrics.Pause,
) void {
    log_text.begin_record(line, stamp, now_ms, quoting, .warning);
    line.put("accepting pauses: ");
    line.put(switch (why) {
        .connections => "limits.connections is reached and none is idle",
        .descriptors => "the process may open no more files (ulimit -n)",
        .memory => "the system has no memory for a connection",
    });
    line.put(if (quoting == .json) "\"}\n" else "\n");
}

pub fn level_of(reason: reasons.Reason) log_text.Level {
    return switch (reasons.kind(reason)) {
        .shed, .evicted => .warning,
        .bad_request, .timeout, .dropped => .info,
    };
}

/// The request took longer than `log.slow_request`.
pub fn put_slow(
    line: *Line,
    stamp: *Stamp,
    now_ms: u64,
    quoting: Quoting,
    connection: *const Connection,
    exchange: *Exchange,
) void {
    const timing = &exchange.record.timing;
    log_text.begin_record(line, stamp, now_ms, quoting, .warning);
    line.put("slow request: ");
    line.put_seconds(timing.total_ns());
    line.put(" s");
    if (quoting == .text) {
        line.put(" (");
        inline for (comptime std.enums.values(Phase), 0..) |phase, index| {
            line.put((if (index > 0) ", " else "") ++ @tagName(phase) ++ " ");
            line.put_seconds(timing.of(phase));
        }
        line.put("), status ");
        line.put_number(exchange.record.status);
        if (exchange.record.thread) |thread| {
            line.put(", thread ");
            line.put_number(thread);
        }
    }
    end_request_record(line, quoting, connection, exchange);
}

/// Which request a record is about. In JSON all fields of the access log follow the message.
fn end_request_record(
    line: *Line,
    quoting: Quoting,
    connection: *const Connection,
    exchange: *Exchange,
) void {
    switch (quoting) {
        .text => {
            const request = RequestLine.of(exchange);
            line.put("; ");
            if (request.method.len > 0) {
                put_method(line, request.method);
                line.put(" \"");
                line.put_escaped(request.target, .text, target_bytes_max);
                line.put("\" ");
            }
            line.put("from ");
            line.put_address(connection.client());
            line.put(", request id ");
            line.put(exchange.request_id());
            line.put("\n");
        },
        .json => {
            line.put("\",");
            put_json_fields(line, connection, exchange);
            line.put("}\n");
        },
    }
}

/// The phases so far, as the value of a Server-Timing field (W3C Server Timing), in milliseconds.
pub fn put_server_timing(line: *Line, timing: *const timing_module.Timing) void {
    const known = .{ Phase.head, Phase.body, Phase.queue, Phase.gil, Phase.app };
    inline for (known, 0..) |phase, index| {
        line.put((if (index > 0) ", " else "") ++ @tagName(phase) ++ ";dur=");
        line.put_milliseconds(timing.of(phase));
    }
}

pub const server_timing_bytes_max = 5 * 40;

/// Paths that are not logged when answered below 400, one a line.
pub fn is_excluded(paths: []const u8, path: []const u8) bool {
    if (paths.len == 0) return false;
    var lines = std.mem.splitScalar(u8, paths, '\n');
    while (lines.next()) |one| if (std.mem.eql(u8, one, path)) return true;
    return false;
}

const testing = std.testing;
const exchange_module = @import("exchange.zig");

const Fixture = struct {
    pool: exchange_module.Pool = .{ .gpa = testing.allocator, .field_lines_max = 8 },
    connection: Connection = .{ .index = 0 },
    exchange: *Exchange = undefined,
    stamp: Stamp = .{},
    buffer: [line_bytes_max]u8 = undefined,
    line: Line = undefined,

    fn begin(self: *Fixture, request: []const u8) !void {
        self.exchange = try self.pool.acquire();
        @memcpy(self.exchange.bytes[0..request.len], request);
        self.exchange.received = @intCast(request.len);
        self.exchange.record.begin(1000, 0xabc);
        _ = self.exchange.head.parse(request, .{
            .request_line_bytes_max = 12_000,
            .head_bytes_max = 15_000,
            .field_lines_max = 8,
        }) catch {};
        self.line = .{ .buffer = &self.buffer };
        const record = &self.exchange.record;
        record.status = 200;
        record.bytes_sent = 150;
        record.head_bytes_sent = 137;
        record.thread = 3;
        record.timing.pass(.head, 3000);
        record.timing.pass(.app, 1_003_000);
    }

    fn deinit(self: *Fixture) void {
        self.pool.release(self.exchange);
        self.pool.deinit();
    }

    fn json(self: *Fixture) !std.json.Parsed(std.json.Value) {
        const text = self.line.written();
        try testing.expectEqual('\n', text[text.len - 1]);
        try testing.expectEqual(text.len - 1, std.mem.indexOfScalar(u8, text, '\n').?);
        for (text) |byte| try testing.expect(byte < 0x80);
        return std.json.parseFromSlice(std.json.Value, testing.allocator, text, .{});
    }
};

const id = "0000000000000000" ++ "0000000000000abc";
const time_ms = 784111777_042;

test "access log: Combined Log Format" {
    const cases = [_]struct { []const u8, []const u8 }{
        .{
            "GET /a?b=\"c HTTP/1.1\r\nHost: a\r\nReferer: http://b/\r\nUser-Agent: curl/8\r\n\r\n",
            "\"GET /a?b=\\\"c HTTP/1.1\" 200 13 \"http://b/\" \"curl/8\"",
        },
        .{
            "GET / HTTP/1.0\r\nUser-Agent: x\xe9\ty\\\r\n\r\n",
            "\"GET / HTTP/1.0\" 200 13 \"-\" \"x\\xe9\\x09y\\\\\"",
        },
        .{ "\x16\x03\x01", "\"-\" 200 13 \"-\" \"-\"" },
        .{ "GET", "\"-\" 200 13 \"-\" \"-\"" },
    };
    for (cases) |case| {
        var fixture: Fixture = .{};
        try fixture.begin(case[0]);
        defer fixture.deinit();
        put_combined(
            &fixture.line,
            &fixture.stamp,
            time_ms,
            &fixture.connection,
            fixture.exchange,
        );
        var expected: [300]u8 = undefined;
        const text = "unix: - - [06/Nov/1994:08:49:37 +0000] {s} " ++ id ++ "\n";
        try testing.expectEqualStrings(
            try std.fmt.bufPrint(&expected, text, .{case[1]}),
            fixture.line.written(),
        );
    }
}

test "access log: JSON has every field, in order" {
    var fixture: Fixture = .{};
    try fixture.begin("GET /\"\\ HTTP/1.1\r\nHost: a\r\nReferer: \xff\r\n" ++
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n");
    defer fixture.deinit();
    put_json(&fixture.line, &fixture.stamp, time_ms, &fixture.connection, fixture.exchange);
    try testing.expectEqualStrings("{\"time\":\"1994-11-06T08:49:37.042Z\",\"client\":\"unix:\"," ++
        "\"method\":\"GET\",\"target\":\"/\\\"\\\\\",\"protocol\":\"HTTP/1.1\",\"status\":200," ++
        "\"bytes_received\":111,\"bytes_sent\":150,\"seconds\":0.001002,\"head\":0.000002," ++
        "\"body\":0.000000,\"queue\":0.000000,\"gil\":0.000000,\"app\":0.001000," ++
        "\"write\":0.000000,\"thread\":3,\"request_id\":\"" ++ id ++ "\"," ++
        "\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\",\"referer\":\"\\u00ff\"," ++
        "\"user_agent\":null}\n", fixture.line.written());
    const parsed = try fixture.json();
    parsed.deinit();
}

test "access log: JSON of a request that was not understood" {
    var fixture: Fixture = .{};
    try fixture.begin("nonsense\r\n\r\n");
    defer fixture.deinit();
    fixture.exchange.record.thread = null;
    put_json(&fixture.line, &fixture.stamp, time_ms, &fixture.connection, fixture.exchange);
    const parsed = try fixture.json();
    defer parsed.deinit();
    for ([_][]const u8{ "method", "target", "protocol", "thread", "trace_id" }) |name| {
        try testing.expect(parsed.value.object.get(name).? == .null);
    }
}

test "access log: the longest line fits" {
    const target = "/" ++ "~" ** 5000;
    const value = "\xff" ** 2000;
    const request = "GET " ++ target ++ " HTTP/1.1\r\nHost: a\r\nReferer: " ++ value ++
        "\r\nUser-Agent: " ++ value ++ "\r\n\r\n";
    var fixture: Fixture = .{};
    try fixture.begin(request);
    defer fixture.deinit();
    put_json(&fixture.line, &fixture.stamp, time_ms, &fixture.connection, fixture.exchange);
    const parsed = try fixture.json();
    defer parsed.deinit();
    const shown = parsed.value.object.get("target").?.string;
    try testing.expectEqualStrings(target[0..target_bytes_max] ++ "...", shown);
    fixture.line.len = 0;
    put_slow(&fixture.line, &fixture.stamp, time_ms, .json, &fixture.connection, fixture.exchange);
    const slow = try fixture.json();
    slow.deinit();
}

test "access log: cut off, turned away, and a pause" {
    var fixture: Fixture = .{};
    try fixture.begin("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    defer fixture.deinit();
    fixture.exchange.record.status = 200;
    const line = &fixture.line;
    const stamp = &fixture.stamp;
    const connection = &fixture.connection;
    const late = reasons.of("write_timeout");
    const bad = reasons.of("bad_proxy_header");
    put_refused(line, stamp, time_ms, .text, late, connection, fixture.exchange);
    put_turned_away(line, stamp, time_ms, .text, bad, connection);
    put_pause(line, stamp, time_ms, .text, .descriptors);
    const time = "1994-11-06T08:49:37.042Z ";
    try testing.expectEqualStrings(time ++ "info cut off 200 write_timeout; GET \"/\" from " ++
        "unix:, request id " ++ id ++ "\n" ++
        time ++ "info closed bad_proxy_header; from unix:\n" ++
        time ++ "warning accepting pauses: the process may open no more files (ulimit -n)\n", //
        line.written());
    line.len = 0;
    put_turned_away(line, stamp, time_ms, .json, bad, connection);
    const closed = try fixture.json();
    defer closed.deinit();
    try testing.expectEqualStrings("unix:", closed.value.object.get("client").?.string);
    line.len = 0;
    put_pause(line, stamp, time_ms, .json, .connections);
    const pause = try fixture.json();
    defer pause.deinit();
    try testing.expectEqualStrings("warning", pause.value.object.get("level").?.string);
}

test "access log: refused and slow requests" {
    var fixture: Fixture = .{};
    try fixture.begin("GET /a\"b HTTP/1.1\r\nX\r\n\r\n");
    defer fixture.deinit();
    fixture.exchange.record.status = 400;
    const line = &fixture.line;
    const reason = reasons.of("bad_field_line");
    const stamp = &fixture.stamp;
    fixture.exchange.record.reason = reason;
    put_refused(line, stamp, time_ms, .text, reason, &fixture.connection, fixture.exchange);
    put_slow(line, &fixture.stamp, time_ms, .text, &fixture.connection, fixture.exchange);
    try testing.expectEqualStrings("1994-11-06T08:49:37.042Z info refused 400 bad_field_line; " ++
        "GET \"/a\\\"b\" from unix:, request id " ++ id ++ "\n" ++
        "1994-11-06T08:49:37.042Z warning slow request: 0.001002 s (head 0.000002, " ++
        "body 0.000000, queue 0.000000, gil 0.000000, app 0.001000, write 0.000000), " ++
        "status 400, thread 3; GET \"/a\\\"b\" from unix:, " ++
        "request id " ++ id ++ "\n", line.written());
    line.len = 0;
    put_refused(line, stamp, time_ms, .json, reason, &fixture.connection, fixture.exchange);
    const parsed = try fixture.json();
    defer parsed.deinit();
    const object = &parsed.value.object;
    try testing.expectEqualStrings("refused 400 bad_field_line", object.get("message").?.string);
    try testing.expectEqualStrings("bad_field_line", object.get("reason").?.string);
    try testing.expectEqualStrings(id, object.get("request_id").?.string);
}

test "access log: excluded paths" {
    try testing.expect(!is_excluded("", ""));
    try testing.expect(!is_excluded("", "/health"));
    try testing.expect(is_excluded("/health", "/health"));
    try testing.expect(is_excluded("/a\n/health", "/health"));
    try testing.expect(!is_excluded("/a\n/health", "/health/x"));
    try testing.expect(!is_excluded("/a\n/health", ""));
}

test "access log: Server-Timing" {
    var fixture: Fixture = .{};
    try fixture.begin("GET / HTTP/1.1\r\n");
    defer fixture.deinit();
    put_server_timing(&fixture.line, &fixture.exchange.record.timing);
    try testing.expectEqualStrings("head;dur=0.002, body;dur=0.000, queue;dur=0.000, " ++
        "gil;dur=0.000, app;dur=1.000", fixture.line.written());
}
