//! The end of every request, for whoever wants to know: one place that counts and logs it.
//!
//! Whoever has the connection when the answer has left, or is given up, calls `finish`: a worker,
//! or whoever polls. Each has a `Lane` with what it needs for that alone: its shard of the metrics,
//! room for a line. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");
const access_log = @import("access_log.zig");
const log_text = @import("log_text.zig");
const log_writer = @import("log_writer.zig");
const metrics_module = @import("metrics.zig");
const reasons = @import("reasons.zig");
const Connection = @import("connection.zig").Connection;
const Exchange = @import("exchange.zig").Exchange;
const Server = @import("server.zig").Server;
const Phase = @import("timing.zig").Phase;
const Record = @import("record.zig").Record;

/// The client left before there was an answer: no registered status, but the one that proxies log.
pub const status_client_gone = 499;

/// What one writer at a time has for itself.
pub const Lane = struct {
    shard: *metrics_module.Shard,
    /// Of `access_log.line_bytes_max`.
    line: []u8,
    stamp: log_text.Stamp = .{},
};

/// What is logged.
pub const Rules = struct {
    access: bool = false,
    quoting: log_text.Quoting = .text,
    level: log_text.Level = .@"error",
    /// One a line; see `access_log.is_excluded`.
    excluded_paths: []const u8 = "",
    /// From here on a request is slow.
    slow_ns: u64 = std.math.maxInt(u64),
};

/// Closes the request's record, if one is open: all phases have been given their time.
pub fn finish(server: *Server, lane: *Lane, connection: *Connection) void {
    const exchange = connection.exchange orelse return;
    server.sending.remove(exchange);
    const record = &exchange.record;
    if (!record.is_open()) return;
    const head_is_complete = exchange.head.head_bytes > 0;
    if (record.status == 0) {
        // What is not a request yet is not answered either.
        if (!head_is_complete) {
            lane.shard.count_dropped(.head);
            record.number = 0;
            return;
        }
        record.status = status_client_gone;
    }
    count(lane.shard, exchange);
    const rules = &server.rules;
    const is_slow = record.timing.total_ns() >= rules.slow_ns;
    if (rules.access or is_slow or why_ended(record) != null) {
        log(server, lane, connection, exchange, is_slow);
    }
    record.number = 0;
}

fn log(
    server: *Server,
    lane: *Lane,
    connection: *const Connection,
    exchange: *Exchange,
    is_slow: bool,
) void {
    const rules = &server.rules;
    const quoting = rules.quoting;
    const now_ms = sys.realtime_ms();
    var line: log_text.Line = .{ .buffer = lane.line };
    const path = exchange.head.path.of(exchange.bytes);
    const is_failure = exchange.record.status >= 400;
    if (rules.access and (is_failure or !access_log.is_excluded(rules.excluded_paths, path))) {
        switch (quoting) {
            .text => access_log.put_combined(&line, &lane.stamp, now_ms, connection, exchange),
            .json => access_log.put_json(&line, &lane.stamp, now_ms, connection, exchange),
        }
        server.log.put(.access, line.written());
    }
    if (is_slow and is_wanted(rules, .warning) and server.log.admit(.slow, now_ms)) {
        line.len = 0;
        access_log.put_slow(&line, &lane.stamp, now_ms, quoting, connection, exchange);
        server.log.put(.errors, line.written());
    }
    const reason = why_ended(&exchange.record) orelse return;
    if (!admits(server, reason, now_ms)) return;
    line.len = 0;
    access_log.put_refused(&line, &lane.stamp, now_ms, quoting, reason, connection, exchange);
    server.log.put(.errors, line.written());
}

/// Why the server itself answered a request, or gave up on its client.
fn why_ended(record: *const Record) ?reasons.Reason {
    if (record.reason) |reason| return reason;
    if (record.evicted) return comptime reasons.of("stalled");
    const phase = record.timed_out orelse return null;
    return if (phase == .write) comptime reasons.of("write_timeout") else null;
}

/// Whether one more line of its kind is wanted now.
fn admits(server: *Server, reason: reasons.Reason, now_ms: u64) bool {
    if (!is_wanted(&server.rules, access_log.level_of(reason))) return false;
    const flood: log_writer.Flood = switch (reasons.kind(reason)) {
        .shed, .evicted => .shed,
        .bad_request, .timeout, .dropped => .refused,
    };
    return server.log.admit(flood, now_ms);
}

/// Counts and logs a connection that ends before a request has begun on it.
pub fn turn_away(
    server: *Server,
    lane: *Lane,
    connection: *const Connection,
    word: []const u8,
) void {
    const reason = reasons.of(word);
    lane.shard.count_refusal(reason);
    const now_ms = sys.realtime_ms();
    if (!admits(server, reason, now_ms)) return;
    var line: log_text.Line = .{ .buffer = lane.line };
    const quoting = server.rules.quoting;
    access_log.put_turned_away(&line, &lane.stamp, now_ms, quoting, reason, connection);
    server.log.put(.errors, line.written());
}

/// Counts and logs that new clients have to wait in the backlog.
pub fn note_pause(server: *Server, lane: *Lane, why: metrics_module.Pause) void {
    lane.shard.count_pause(why);
    const now_ms = sys.realtime_ms();
    if (!is_wanted(&server.rules, .warning) or !server.log.admit(.pause, now_ms)) return;
    var line: log_text.Line = .{ .buffer = lane.line };
    access_log.put_pause(&line, &lane.stamp, now_ms, server.rules.quoting, why);
    server.log.put(.errors, line.written());
}

fn is_wanted(rules: *const Rules, level: log_text.Level) bool {
    return @intFromEnum(level) <= @intFromEnum(rules.level);
}

fn count(shard: *metrics_module.Shard, exchange: *const Exchange) void {
    const record = &exchange.record;
    const timing = &record.timing;
    shard.count_request(exchange.head.method.of(exchange.bytes), record.status);
    shard.request.observe(timing.total_ns());
    if (record.thread != null) {
        shard.queue.observe(timing.of(.queue) + record.waited_before_ns);
        shard.gil.observe(timing.of(.gil));
        shard.app.observe(timing.of(.app));
    }
    shard.write.observe(timing.of(.write));
    if (record.reason) |reason| shard.count_refusal(reason);
    if (record.timed_out) |phase| shard.count_timeout(phase);
    // A request that was dropped in the queue has been counted as that.
    const is_counted = if (record.reason) |reason| reasons.kind(reason) == .dropped else false;
    if (record.client_gone and !record.evicted and !is_counted) {
        shard.count_dropped(phase_left(record.status, exchange));
    }
}

/// Where a request was whose client has left.
fn phase_left(status: u16, exchange: *const Exchange) Phase {
    if (status != status_client_gone) return .write;
    if (exchange.record.thread == null) return .body;
    return .app;
}
