//! The state of the whole process as JSON: /status, and /threads where the GIL cannot be had.
//!
//! Numbers are read one after another while the server goes on, so they need not agree to the last
//! request. Times are in seconds, sizes in bytes. The admin thread; GIL: not needed.

const std = @import("std");
const builtin = @import("builtin");
const build_options = @import("build_options");
const sys = @import("sys.zig");
const json_text = @import("json.zig");
const metrics_module = @import("metrics.zig");
const pages = @import("pages.zig");
const reasons = @import("reasons.zig");
const Phase = @import("timing.zig").Phase;
const Admin = @import("admin.zig").Admin;
const RequestInfo = @import("in_flight.zig").RequestInfo;
const Server = @import("server.zig").Server;
const Writer = std.Io.Writer;
const Stringify = std.json.Stringify;
const Error = Stringify.Error;

/// How many requests in flight are looked at, and how many of them, the oldest, are shown.
const requests_seen_max = 4096;
const requests_shown_max = 100;

pub fn write(admin: *Admin, writer: *Writer) Error!void {
    var json: Stringify = .{ .writer = writer };
    const server = admin.server.load(.acquire);
    try json.beginObject();
    try field(&json, "version", build_options.version);
    try field(&json, "python", admin.options.python);
    try field(&json, "zig", builtin.zig_version_string);
    try field(&json, "pid", sys.process_id());
    try field(&json, "uptime", seconds_of_ms(sys.monotonic_ms() -| admin.started_ms));
    try field(&json, "state", state_of(admin, server));
    if (server) |one| try write_server(&json, one);
    try json.objectField("config");
    try json.beginWriteRaw();
    try writer.writeAll(admin.options.config);
    json.endWriteRaw();
    try json.endObject();
    try writer.writeByte('\n');
}

/// What takes the place of the threads' stacks: what they do, as far as that is known here.
pub fn write_threads(admin: *Admin, writer: *Writer) Error!void {
    var json: Stringify = .{ .writer = writer };
    try json.beginObject();
    try field(&json, "error", "the GIL could not be taken within 1 s, so there are no Python " ++
        "stacks; these are the requests in flight");
    if (admin.server.load(.acquire)) |server| try write_requests(&json, server);
    try json.endObject();
    try writer.writeByte('\n');
}

/// For the metrics, as long as nothing is served.
pub fn gauges_before(admin: *const Admin) metrics_module.Gauges {
    return .{
        .version = build_options.version,
        .python = admin.options.python,
        .zig = builtin.zig_version_string,
    };
}

fn state_of(admin: *Admin, server: ?*Server) []const u8 {
    const stage = admin.stage.load(.acquire);
    const is_leaving = if (server) |one| one.health.is_leaving() else false;
    return if (stage == .serving and is_leaving) "draining" else @tagName(stage);
}

fn write_server(json: *Stringify, server: *Server) Error!void {
    const gauges = server.gauges();
    try field(json, "stalled", seconds_of_ms(server.health.stalled_ms.load(.acquire)));
    try field(json, "requests_in_flight", gauges.requests_in_flight);
    try field(json, "saturation", gauges.saturation);
    try json.objectField("threads");
    try write_states(json, gauges.threads_limit, &gauges.threads);
    try json.objectField("connections");
    try write_states(json, gauges.connections_limit, &gauges.connections);
    try json.objectField("queue");
    try json.write(.{ .limit = gauges.queue_limit, .depth = gauges.queue_depth });
    var total: metrics_module.Shard = undefined;
    server.metrics.add_up(&total);
    try write_counters(json, &total, gauges);
    try write_latency(json, &total);
    try write_requests(json, server);
}

fn write_states(json: *Stringify, limit: u64, states: anytype) Error!void {
    try json.beginObject();
    try field(json, "limit", limit);
    for (std.enums.values(@TypeOf(states.*).Key)) |state| {
        try field(json, @tagName(state), states.get(state));
    }
    try json.endObject();
}

fn write_counters(
    json: *Stringify,
    total: *const metrics_module.Shard,
    gauges: metrics_module.Gauges,
) Error!void {
    try json.objectField("counters");
    try json.beginObject();
    try field(json, "requests", count_of(&total.request));
    try field(json, "connections_accepted", total.accepted.get());
    try field(json, "bytes_received", total.bytes_received.get());
    try field(json, "bytes_sent", total.bytes_sent.get());
    try field(json, "app_exceptions", total.app_exceptions.get());
    try field(json, "log_lines_dropped", gauges.log_lines_dropped);
    try field(json, "shed", refusals(total, .shed));
    try field(json, "bad_requests", refusals(total, .bad_request));
    try json.objectField("timeouts");
    try write_by_phase(json, &total.timeouts);
    try json.objectField("dropped");
    try write_by_phase(json, &total.dropped);
    try json.endObject();
}

fn refusals(total: *const metrics_module.Shard, kind: reasons.Kind) u64 {
    var sum: u64 = 0;
    for (&total.refused, 0..) |*counter, index| {
        if (reasons.kind(@intCast(index)) == kind) sum += counter.get();
    }
    return sum;
}

fn write_by_phase(json: *Stringify, counters: anytype) Error!void {
    try json.beginObject();
    for (std.enums.values(Phase)) |phase| {
        try field(json, @tagName(phase), counters[@intFromEnum(phase)].get());
    }
    try json.endObject();
}

/// Histograms as counts by upper bound, the last one without; not cumulative.
fn write_latency(json: *Stringify, total: *const metrics_module.Shard) Error!void {
    try json.objectField("latency");
    try json.beginObject();
    try json.objectField("bounds");
    try json.beginArray();
    for (metrics_module.Histogram.bounds_ns) |bound_ns| try json.write(seconds_of_ns(bound_ns));
    try json.endArray();
    inline for (.{ "request", "queue", "gil", "app", "write" }) |name| {
        const histogram = &@field(total, name);
        try json.objectField(name);
        try json.beginObject();
        try field(json, "count", count_of(histogram));
        try field(json, "sum", seconds_of_ns(histogram.sum_ns.get()));
        try json.objectField("buckets");
        try json.beginArray();
        for (&histogram.buckets) |*bucket| try json.write(bucket.get());
        try json.endArray();
        try json.endObject();
    }
    try json.endObject();
}

fn count_of(histogram: *const metrics_module.Histogram) u64 {
    var count: u64 = 0;
    for (&histogram.buckets) |*bucket| count += bucket.get();
    return count;
}

/// The requests in flight, the oldest first.
fn write_requests(json: *Stringify, server: *Server) Error!void {
    const buffer = pages.alloc(RequestInfo, requests_seen_max) catch return error.WriteFailed;
    defer pages.free(buffer);
    const found = buffer[0..server.snapshot_requests(buffer)];
    std.mem.sort(RequestInfo, found, {}, is_older);
    try json.objectField("requests");
    try json.beginArray();
    for (found[0..@min(found.len, requests_shown_max)]) |*request| {
        try json.beginObject();
        try text_field(json, "method", request.method.slice());
        try text_field(json, "target", request.target.slice());
        try text_field(json, "client", request.client.slice());
        try text_field(json, "request_id", request.request_id.slice());
        try field(json, "phase", @tagName(request.phase));
        try field(json, "age", seconds_of_ns(request.age_ns));
        try field(json, "thread", request.thread);
        try json.endObject();
    }
    try json.endArray();
}

fn is_older(_: void, a: RequestInfo, b: RequestInfo) bool {
    return a.age_ns > b.age_ns;
}

fn field(json: *Stringify, name: []const u8, value: anytype) Error!void {
    try json.objectField(name);
    try json.write(value);
}

/// What a client sent need not be UTF-8.
fn text_field(json: *Stringify, name: []const u8, value: []const u8) Error!void {
    try json.objectField(name);
    try json.beginWriteRaw();
    try json_text.write_string(json.writer, value);
    json.endWriteRaw();
}

fn seconds_of_ms(duration_ms: u64) f64 {
    return @as(f64, @floatFromInt(duration_ms)) / std.time.ms_per_s;
}

fn seconds_of_ns(duration_ns: u64) f64 {
    return @as(f64, @floatFromInt(duration_ns)) / std.time.ns_per_s;
}
