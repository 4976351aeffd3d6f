//! Counters and histograms, and how Prometheus reads them.
//!
//! Each thread that finishes requests writes to a shard of its own, and whoever polls has one more,
//! which the baton hands on. A shard thus has one writer at a time: an addition is a load and a
//! store, without a lock and without a locked instruction. Readers, on any thread, add the shards
//! up; what they see may be a moment old. Every label has a set of values that is known at compile
//! time: no client can make a series. GIL: not needed.

const std = @import("std");
const pages = @import("pages.zig");
const reasons = @import("reasons.zig");
const timing_module = @import("timing.zig");
const Phase = timing_module.Phase;

const prefix = "serve_zig_";

pub const Counter = extern struct {
    value: std.atomic.Value(u64) = .init(0),

    /// The shard's writer alone.
    pub inline fn add(self: *Counter, amount: u64) void {
        self.value.store(self.value.load(.monotonic) +% amount, .monotonic);
    }

    /// For what can go down again; the same.
    pub fn take_one(self: *Counter) void {
        self.value.store(self.value.load(.monotonic) -% 1, .monotonic);
    }

    pub inline fn get(self: *const Counter) u64 {
        return self.value.load(.monotonic);
    }
};

/// Upper bounds, in nanoseconds and as labels. From a request that does nothing to one that nobody
/// should wait for; fine between a tenth of a millisecond and a second, where services are tuned.
const bounds = [_]struct { u64, []const u8 }{
    .{ 100_000, "0.0001" },      .{ 250_000, "0.00025" },     .{ 500_000, "0.0005" },
    .{ 1_000_000, "0.001" },     .{ 2_500_000, "0.0025" },    .{ 5_000_000, "0.005" },
    .{ 10_000_000, "0.01" },     .{ 25_000_000, "0.025" },    .{ 50_000_000, "0.05" },
    .{ 100_000_000, "0.1" },     .{ 250_000_000, "0.25" },    .{ 500_000_000, "0.5" },
    .{ 1_000_000_000, "1.0" },   .{ 2_500_000_000, "2.5" },   .{ 5_000_000_000, "5.0" },
    .{ 10_000_000_000, "10.0" }, .{ 30_000_000_000, "30.0" }, .{ 60_000_000_000, "60.0" },
};

pub const Histogram = extern struct {
    /// Not cumulative; the last is what is beyond every bound.
    buckets: [bounds.len + 1]Counter = @splat(.{}),
    sum_ns: Counter = .{},

    pub inline fn observe(self: *Histogram, value_ns: u64) void {
        var index: usize = 0;
        // Most values are in the first buckets.
        while (index < bounds.len and value_ns > bounds_ns[index]) index += 1;
        self.buckets[index].add(1);
        self.sum_ns.add(value_ns);
    }

    pub const bounds_ns: [bounds.len]u64 = blk: {
        var list: [bounds.len]u64 = undefined;
        for (&list, bounds) |*bound, entry| bound.* = entry[0];
        break :blk list;
    };
};

/// RFC 9110 9.3 and RFC 5789. Any other method is "other".
const methods = [_][]const u8{
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "other",
};

pub fn method_index(method: []const u8) u8 {
    inline for (methods[0 .. methods.len - 1], 0..) |name, index| {
        if (method.len == name.len and std.mem.eql(u8, method, name)) return index;
    }
    return methods.len - 1;
}

/// Registered statuses, 499 (the client left before there was an answer, as nginx has it), and a
/// class for each of the others, which an application may make up.
const statuses = [_][]const u8{
    "200", "201", "202", "203", "204", "205", "206", "207", "208", "226", "2xx", "300", "301",
    "302", "303", "304", "305", "306", "307", "308", "3xx", "400", "401", "402", "403", "404",
    "405", "406", "407", "408", "409", "410", "411", "412", "413", "414", "415", "416", "417",
    "418", "421", "422", "423", "424", "425", "426", "428", "429", "431", "451", "499", "4xx",
    "500", "501", "502", "503", "504", "505", "506", "507", "508", "510", "511", "5xx", "other",
};

const status_indices: [600]u8 = blk: {
    @setEvalBranchQuota(200_000);
    var table: [600]u8 = @splat(statuses.len - 1);
    for (200..600) |status| {
        const class = [_]u8{ '0' + status / 100, 'x', 'x' };
        for (statuses, 0..) |label, index| {
            if (std.mem.eql(u8, label, &class)) table[status] = index;
        }
        const digits = [_]u8{ '0' + status / 100, '0' + status / 10 % 10, '0' + status % 10 };
        for (statuses, 0..) |label, index| {
            if (std.mem.eql(u8, label, &digits)) table[status] = index;
        }
    }
    break :blk table;
};

pub inline fn status_index(status: u16) u8 {
    return if (status < status_indices.len) status_indices[status] else statuses.len - 1;
}

const phases = timing_module.phase_count;

/// Why the server closed a connection on which nothing was wrong.
pub const Closed = enum {
    /// Idle for longer than `timeouts.keep_alive`.
    keep_alive_timeout,
    /// It made room for a new one: `limits.connections`, or no more descriptors.
    evicted,
    /// Its client had taken nothing of its response for longest, and something was short.
    stalled,
    requests_per_connection,
};

/// Why clients wait in the kernel's backlog.
pub const Pause = enum {
    /// `limits.connections`, and none is idle or stalled.
    connections,
    descriptors,
    memory,
};

/// Made of counters alone, all of them zero at first.
pub const Shard = extern struct {
    // What every request touches is together.
    requests_get: [statuses.len]Counter align(64),
    request: Histogram,
    queue: Histogram,
    gil: Histogram,
    app: Histogram,
    write: Histogram,
    bytes_received: Counter,
    bytes_sent: Counter,
    requests_other: [methods.len - 1][statuses.len]Counter,
    refused: [reasons.count]Counter,
    timeouts: [phases]Counter,
    dropped: [phases]Counter,
    app_exceptions: Counter,
    accepted: Counter,
    closed: [std.enums.values(Closed).len]Counter,
    pauses: [std.enums.values(Pause).len]Counter,

    pub inline fn count_request(self: *Shard, method: []const u8, status: u16) void {
        const column = status_index(status);
        if (std.mem.eql(u8, method, "GET")) return self.requests_get[column].add(1);
        self.requests_other[method_index(method) - 1][column].add(1);
    }

    pub fn count_refusal(self: *Shard, reason: reasons.Reason) void {
        self.refused[reason].add(1);
        const word = reasons.name(reason);
        if (std.mem.eql(u8, word, "head_timeout")) self.count_timeout(.head);
        if (std.mem.eql(u8, word, "proxy_header_timeout")) self.count_timeout(.head);
        if (std.mem.eql(u8, word, "body_timeout")) self.count_timeout(.body);
        if (std.mem.eql(u8, word, "queue_timeout")) self.count_timeout(.queue);
        if (reasons.kind(reason) == .dropped) self.count_dropped(.queue);
    }

    pub fn count_timeout(self: *Shard, phase: Phase) void {
        self.timeouts[@intFromEnum(phase)].add(1);
    }

    pub fn count_dropped(self: *Shard, phase: Phase) void {
        self.dropped[@intFromEnum(phase)].add(1);
    }

    pub fn count_closed(self: *Shard, why: Closed) void {
        self.closed[@intFromEnum(why)].add(1);
    }

    pub fn count_pause(self: *Shard, why: Pause) void {
        self.pauses[@intFromEnum(why)].add(1);
    }

    const counter_count = @sizeOf(Shard) / @sizeOf(Counter);

    fn counters(self: *const Shard) *const [counter_count]Counter {
        return @ptrCast(self);
    }

    fn counters_mutable(self: *Shard) *[counter_count]Counter {
        return @ptrCast(self);
    }
};

pub const ConnectionState = enum { idle, reading, queued, running, writing, suspended, lingering };
pub const ThreadState = enum { idle, polling, attaching, running };

/// What is so at the moment, for whoever shows the metrics.
pub const Gauges = struct {
    connections: std.EnumArray(ConnectionState, u64) = .initFill(0),
    threads: std.EnumArray(ThreadState, u64) = .initFill(0),
    queue_depth: u64 = 0,
    /// Complete requests that are not answered completely.
    requests_in_flight: u64 = 0,
    threads_limit: u64 = 0,
    queue_limit: u64 = 0,
    connections_limit: u64 = 0,
    /// What clients have sent or not taken yet, beyond the buffers that every request has.
    buffer_memory_bytes: u64 = 0,
    buffer_memory_limit_bytes: u64 = 0,
    /// Requests in the queue and in the application, by `threads_limit`: above 1 some wait.
    saturation: f64 = 0,
    draining: bool = false,
    log_lines_dropped: u64 = 0,
    /// Since the epoch.
    start_time_seconds: u64 = 0,
    version: []const u8 = "",
    python: []const u8 = "",
    zig: []const u8 = "",
};

pub const Format = enum {
    prometheus_0_0_4,
    openmetrics_1_0,

    pub fn content_type(self: Format) []const u8 {
        return switch (self) {
            .prometheus_0_0_4 => "text/plain; version=0.0.4; charset=utf-8",
            .openmetrics_1_0 => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        };
    }
};

pub const Metrics = struct {
    /// The first is the poller's, then one for each worker.
    shards: []Shard,

    /// Before there is a server.
    pub const empty: Metrics = .{ .shards = &.{} };

    pub fn init(workers: usize) error{OutOfMemory}!Metrics {
        return .{ .shards = try pages.alloc(Shard, workers + 1) };
    }

    pub fn deinit(self: *Metrics) void {
        pages.free(self.shards);
    }

    pub fn poller_shard(self: *const Metrics) *Shard {
        return &self.shards[0];
    }

    pub fn worker_shard(self: *const Metrics, index: usize) *Shard {
        return &self.shards[index + 1];
    }

    /// All shards together.
    pub fn add_up(self: *const Metrics, total: *Shard) void {
        for (total.counters_mutable(), 0..) |*sum, index| {
            var value: u64 = 0;
            for (self.shards) |*shard| value +%= shard.counters()[index].get();
            sum.* = .{ .value = .init(value) };
        }
    }

    /// The whole text in one of Prometheus' formats. Any thread.
    pub fn write(
        self: *const Metrics,
        writer: *std.Io.Writer,
        format: Format,
        gauges: Gauges,
    ) std.Io.Writer.Error!void {
        var total: Shard = undefined;
        self.add_up(&total);
        const exposition: Exposition = .{ .writer = writer, .format = format };
        try write_requests(exposition, &total);
        try exposition.histogram("request_seconds", "From the first byte received until the " ++
            "kernel had the last byte of the answer.", &total.request);
        try exposition.histogram("queue_seconds", "Wait for a worker, in the server and, where " ++
            "a trusted proxy tells, before it.", &total.queue);
        try exposition.histogram("gil_wait_seconds", "Wait of the request's worker for the " ++
            "GIL.", &total.gil);
        try exposition.histogram("app_seconds", "Application call, iteration and close, but for " ++
            "waits for the client.", &total.app);
        try exposition.histogram("write_seconds", "From the end of the application until the " ++
            "kernel had the last byte.", &total.write);
        try write_failures(exposition, &total);
        try write_sums(exposition, &total, gauges);
        try write_gauges(exposition, gauges);
        if (format == .openmetrics_1_0) try writer.writeAll("# EOF\n");
    }
};

fn write_requests(out: Exposition, total: *const Shard) std.Io.Writer.Error!void {
    try out.family("requests", .counter, "Requests answered, by method and status; 499 where " ++
        "the client left before there was an answer.");
    for (methods, 0..) |method, row| {
        const by_status = if (row == 0) &total.requests_get else &total.requests_other[row - 1];
        for (statuses, by_status) |status, *counter| {
            const value = counter.get();
            if (value == 0) continue;
            const labels = "{{method=\"{s}\",status=\"{s}\"}}";
            try out.writer.print(prefix ++ "requests_total" ++ labels ++ " {d}\n", .{
                method,
                status,
                value,
            });
        }
    }
}

fn write_failures(out: Exposition, total: *const Shard) std.Io.Writer.Error!void {
    try out.family("shed", .counter, "Requests refused for want of something the server needs.");
    try write_refusals(out, "shed_total", .shed, total);
    try out.family("bad_requests", .counter, "Requests refused for what they are.");
    try write_refusals(out, "bad_requests_total", .bad_request, total);
    try out.family("timeouts", .counter, "Requests that took longer in a phase than its timeout.");
    try write_by_phase(out, "timeouts_total", &total.timeouts);
    try out.family("dropped", .counter, "Requests whose client left before it had the whole " ++
        "answer, by the phase in which it was seen.");
    try write_by_phase(out, "dropped_total", &total.dropped);
    try out.counter("app_exceptions", "Exceptions that the application let through.", //
        total.app_exceptions.get());
}

fn write_refusals(
    out: Exposition,
    comptime name: []const u8,
    kind: reasons.Kind,
    total: *const Shard,
) std.Io.Writer.Error!void {
    for (&total.refused, 0..) |*counter, index| {
        const reason: reasons.Reason = @intCast(index);
        if (reasons.kind(reason) != kind) continue;
        try out.writer.print(prefix ++ name ++ "{{reason=\"{s}\"}} {d}\n", .{
            reasons.name(reason),
            counter.get(),
        });
    }
}

fn write_by_phase(
    out: Exposition,
    comptime name: []const u8,
    counters: *const [phases]Counter,
) std.Io.Writer.Error!void {
    for (counters, 0..) |*counter, index| {
        const phase: Phase = @enumFromInt(index);
        // Nobody bounds the wait for the GIL, and nobody can leave in it unseen.
        if (phase == .gil) continue;
        const value = counter.get();
        try out.writer.print(prefix ++ name ++ "{{phase=\"{t}\"}} {d}\n", .{ phase, value });
    }
}

fn write_sums(out: Exposition, total: *const Shard, gauges: Gauges) std.Io.Writer.Error!void {
    try out.counter("bytes_received", "Bytes received from clients.", total.bytes_received.get());
    try out.counter("bytes_sent", "Bytes sent to clients.", total.bytes_sent.get());
    try out.counter("connections_accepted", "Connections accepted.", total.accepted.get());
    try out.family("connections_closed", .counter, "Connections that the server closed though " ++
        "nothing was wrong with them.");
    try write_by_reason(out, "connections_closed_total", Closed, &total.closed);
    try out.family("accept_pauses", .counter, "Times at which new clients had to wait in the " ++
        "kernel's backlog, for want of this.");
    try write_by_reason(out, "accept_pauses_total", Pause, &total.pauses);
    try out.counter("log_lines_dropped", "Log lines that nobody took in time, or that found no " ++
        "space.", gauges.log_lines_dropped);
}

fn write_gauges(out: Exposition, gauges: Gauges) std.Io.Writer.Error!void {
    try out.family("connections", .gauge, "Connections by what they are doing.");
    try write_states(out, "connections", ConnectionState, &gauges.connections);
    try out.family("threads", .gauge, "Worker threads by what they are doing; attaching is " ++
        "waiting for the GIL.");
    try write_states(out, "threads", ThreadState, &gauges.threads);
    try out.gauge("queue_depth", "Complete requests that wait for a worker.", gauges.queue_depth);
    try out.gauge("requests_in_flight", "Complete requests that are not answered completely: " ++
        "queued, running or being sent.", gauges.requests_in_flight);
    try out.gauge("threads_limit", "concurrency.threads.", gauges.threads_limit);
    try out.gauge("queue_limit", "concurrency.queue.", gauges.queue_limit);
    try out.gauge("connections_limit", "limits.connections.", gauges.connections_limit);
    try out.gauge("buffer_memory_bytes", "Memory for large heads, for bodies, and for responses " ++
        "that clients have not taken yet.", gauges.buffer_memory_bytes);
    try out.gauge("buffer_memory_limit_bytes", "limits.buffer_memory.", gauges
        .buffer_memory_limit_bytes);
    try out.family("saturation", .gauge, "Requests running and queued by concurrency.threads; " ++
        "above 1 some wait.");
    try out.writer.print(prefix ++ "saturation {d}\n", .{gauges.saturation});
    try out.gauge("draining", "1 from the begin of the drain.", @intFromBool(gauges.draining));
    try out.family("start_time_seconds", .gauge, "When the server started, since the epoch.");
    try out.writer.print(prefix ++ "start_time_seconds {d}\n", .{gauges.start_time_seconds});
    try out.family("build", .info, "What is running.");
    try out.writer.writeAll(prefix ++ "build_info{version=\"");
    try write_label(out.writer, gauges.version);
    try out.writer.writeAll("\",python=\"");
    try write_label(out.writer, gauges.python);
    try out.writer.writeAll("\",zig=\"");
    try write_label(out.writer, gauges.zig);
    try out.writer.writeAll("\"} 1\n");
}

fn write_states(
    out: Exposition,
    comptime name: []const u8,
    comptime State: type,
    values: *const std.EnumArray(State, u64),
) std.Io.Writer.Error!void {
    for (std.enums.values(State)) |state| {
        const value = values.get(state);
        try out.writer.print(prefix ++ name ++ "{{state=\"{t}\"}} {d}\n", .{ state, value });
    }
}

fn write_by_reason(
    out: Exposition,
    comptime name: []const u8,
    comptime Reason: type,
    counters: []const Counter,
) std.Io.Writer.Error!void {
    for (std.enums.values(Reason), counters) |reason, *counter| {
        try out.writer.print(prefix ++ name ++ "{{reason=\"{t}\"}} {d}\n", .{
            reason,
            counter.get(),
        });
    }
}

/// Escaped as both formats have it.
fn write_label(writer: *std.Io.Writer, text: []const u8) std.Io.Writer.Error!void {
    for (text) |byte| switch (byte) {
        '\\' => try writer.writeAll("\\\\"),
        '"' => try writer.writeAll("\\\""),
        '\n' => try writer.writeAll("\\n"),
        else => try writer.writeByte(byte),
    };
}

const Kind = enum { counter, gauge, histogram, info };

const Exposition = struct {
    writer: *std.Io.Writer,
    format: Format,

    /// OpenMetrics names a family without the suffix of its samples; the older format knows only
    /// the samples, and no info.
    fn family(
        self: Exposition,
        comptime name: []const u8,
        comptime kind: Kind,
        comptime help: []const u8,
    ) std.Io.Writer.Error!void {
        const suffix = switch (kind) {
            .counter => "_total",
            .info => "_info",
            .gauge, .histogram => "",
        };
        const older_kind = if (kind == .info) Kind.gauge else kind;
        try self.writer.writeAll(switch (self.format) {
            .prometheus_0_0_4 => "# HELP " ++ prefix ++ name ++ suffix ++ " " ++ help ++
                "\n# TYPE " ++ prefix ++ name ++ suffix ++ " " ++ @tagName(older_kind) ++ "\n",
            .openmetrics_1_0 => "# TYPE " ++ prefix ++ name ++ " " ++ @tagName(kind) ++
                comptime unit_of(name) ++ "\n# HELP " ++ prefix ++ name ++ " " ++ help ++ "\n",
        });
    }

    fn unit_of(comptime name: []const u8) []const u8 {
        const has_unit = std.mem.endsWith(u8, name, "_seconds");
        return if (has_unit) "\n# UNIT " ++ prefix ++ name ++ " seconds" else "";
    }

    fn counter(
        self: Exposition,
        comptime name: []const u8,
        comptime help: []const u8,
        value: u64,
    ) std.Io.Writer.Error!void {
        try self.family(name, .counter, help);
        try self.writer.print(prefix ++ name ++ "_total {d}\n", .{value});
    }

    fn gauge(
        self: Exposition,
        comptime name: []const u8,
        comptime help: []const u8,
        value: u64,
    ) std.Io.Writer.Error!void {
        try self.family(name, .gauge, help);
        try self.writer.print(prefix ++ name ++ " {d}\n", .{value});
    }

    fn histogram(
        self: Exposition,
        comptime name: []const u8,
        comptime help: []const u8,
        values: *const Histogram,
    ) std.Io.Writer.Error!void {
        try self.family(name, .histogram, help);
        var count: u64 = 0;
        for (bounds, values.buckets[0..bounds.len]) |bound, *bucket| {
            count += bucket.get();
            try self.writer.print(prefix ++ name ++ "_bucket{{le=\"{s}\"}} {d}\n", .{
                bound[1],
                count,
            });
        }
        count += values.buckets[bounds.len].get();
        const sum = values.sum_ns.get();
        try self.writer.print(prefix ++ name ++ "_bucket{{le=\"+Inf\"}} {d}\n" ++
            prefix ++ name ++ "_sum {d}.{d:0>9}\n" ++ prefix ++ name ++ "_count {d}\n", .{
            count,
            sum / std.time.ns_per_s,
            sum % std.time.ns_per_s,
            count,
        });
    }
};

const testing = std.testing;

fn render(metrics: *const Metrics, format: Format, gauges: Gauges) ![]u8 {
    var writer: std.Io.Writer.Allocating = .init(testing.allocator);
    errdefer writer.deinit();
    try metrics.write(&writer.writer, format, gauges);
    return writer.toOwnedSlice();
}

fn expect_line(text: []const u8, line: []const u8) !void {
    var lines = std.mem.splitScalar(u8, text, '\n');
    while (lines.next()) |one| if (std.mem.eql(u8, one, line)) return;
    std.debug.print("no line {s} in\n{s}\n", .{ line, text });
    return error.NoSuchLine;
}

test "metrics: shards add up" {
    var metrics = try Metrics.init(2);
    defer metrics.deinit();
    metrics.poller_shard().count_request("GET", 200);
    metrics.worker_shard(0).count_request("GET", 200);
    metrics.worker_shard(1).count_request("POST", 299);
    metrics.worker_shard(1).count_request("BREW", 700);
    metrics.worker_shard(1).count_request("GET", 0);
    metrics.worker_shard(0).bytes_sent.add(7);
    metrics.poller_shard().bytes_sent.add(5);
    metrics.poller_shard().count_refusal(reasons.of("queue_timeout"));
    metrics.poller_shard().count_refusal(reasons.of("bare_lf"));
    const text = try render(&metrics, .prometheus_0_0_4, .{});
    defer testing.allocator.free(text);
    for ([_][]const u8{
        "serve_zig_requests_total{method=\"GET\",status=\"200\"} 2",
        "serve_zig_requests_total{method=\"POST\",status=\"2xx\"} 1",
        "serve_zig_requests_total{method=\"other\",status=\"other\"} 1",
        "serve_zig_requests_total{method=\"GET\",status=\"other\"} 1",
        "serve_zig_bytes_sent_total 12",
        "serve_zig_shed_total{reason=\"queue_timeout\"} 1",
        "serve_zig_timeouts_total{phase=\"queue\"} 1",
        "serve_zig_bad_requests_total{reason=\"bare_lf\"} 1",
        "serve_zig_bad_requests_total{reason=\"bad_chunk_size\"} 0",
    }) |line| try expect_line(text, line);
}

test "metrics: a histogram's buckets hold what is up to their bound" {
    var metrics = try Metrics.init(1);
    defer metrics.deinit();
    const histogram = &metrics.worker_shard(0).request;
    for ([_]u64{ 0, 100_000, 100_001, 1_000_000_000, 61_000_000_000 }) |value| {
        histogram.observe(value);
    }
    const text = try render(&metrics, .prometheus_0_0_4, .{});
    defer testing.allocator.free(text);
    for ([_][]const u8{
        "serve_zig_request_seconds_bucket{le=\"0.0001\"} 2",
        "serve_zig_request_seconds_bucket{le=\"0.00025\"} 3",
        "serve_zig_request_seconds_bucket{le=\"0.5\"} 3",
        "serve_zig_request_seconds_bucket{le=\"1.0\"} 4",
        "serve_zig_request_seconds_bucket{le=\"60.0\"} 4",
        "serve_zig_request_seconds_bucket{le=\"+Inf\"} 5",
        "serve_zig_request_seconds_count 5",
        "serve_zig_request_seconds_sum 62.000200001",
    }) |line| try expect_line(text, line);
}

test "metrics: the formats differ in names, types and end" {
    const odd = "a\"b\\c\nd";
    const gauges: Gauges = .{ .draining = true, .version = "1", .python = odd, .zig = "z" };
    const older = try render(&Metrics.empty, .prometheus_0_0_4, gauges);
    defer testing.allocator.free(older);
    const newer = try render(&Metrics.empty, .openmetrics_1_0, gauges);
    defer testing.allocator.free(newer);
    try expect_line(older, "# TYPE serve_zig_requests_total counter");
    try expect_line(newer, "# TYPE serve_zig_requests counter");
    try expect_line(older, "# TYPE serve_zig_build_info gauge");
    try expect_line(newer, "# TYPE serve_zig_build info");
    try expect_line(newer, "# UNIT serve_zig_app_seconds seconds");
    const build = "serve_zig_build_info{version=\"1\",python=\"a\\\"b\\\\c\\nd\",zig=\"z\"} 1";
    for ([_][]const u8{ older, newer }) |text| {
        try expect_line(text, build);
        try expect_line(text, "serve_zig_draining 1");
    }
    try testing.expect(std.mem.endsWith(u8, newer, "\n# EOF\n"));
    try testing.expect(std.mem.indexOf(u8, older, "EOF") == null);
}

test "metrics: statuses and methods have bounded labels" {
    try testing.expectEqualStrings("404", statuses[status_index(404)]);
    try testing.expectEqualStrings("4xx", statuses[status_index(460)]);
    try testing.expectEqualStrings("5xx", statuses[status_index(599)]);
    try testing.expectEqualStrings("other", statuses[status_index(600)]);
    try testing.expectEqualStrings("other", statuses[status_index(999)]);
    try testing.expectEqualStrings("other", statuses[status_index(0)]);
    for ([_][]const u8{ "get", "GETS", "", "PROPFIND" }) |method| {
        try testing.expectEqualStrings("other", methods[method_index(method)]);
    }
    for (methods[0..9]) |method| {
        try testing.expectEqualStrings(method, methods[method_index(method)]);
    }
}
