//! The end of every request, for whoever wants to know: one place that counts and logs it.
//!
//! Whoever has the connection when the answer has left, or is given up, calls `finish`: a worker,
//! or whoever polls. Each has a `Lane` with its own shard of the metrics. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");
const metrics_module = @import("metrics.zig");
const reasons = @import("reasons.zig");
const Connection = @import("connection.zig").Connection;
const Exchange = @import("exchange.zig").Exchange;
const Server = @import("server.zig").Server;
const Phase = @import("timing.zig").Phase;

/// The client left before there was an answer: no registered status, but the one that proxies log.
pub const status_client_gone = 499;

/// What one writer at a time has for itself.
pub const Lane = struct {
    shard: *metrics_module.Shard,
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
    record.number = 0;
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
    if (record.client_gone) shard.count_dropped(phase_left(record.status, exchange));
}

/// Where a request was whose client has left.
fn phase_left(status: u16, exchange: *const Exchange) Phase {
    if (status != status_client_gone) return .write;
    if (exchange.record.thread == null) return .body;
    return .app;
}
