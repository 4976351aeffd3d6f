//! What each path of the admin listener answers (docs/OPERATIONS.md).
//!
//! Answers are composed whole in memory that the caller frees. The admin thread; GIL: not needed.

const std = @import("std");
const health_module = @import("health.zig");
const date_module = @import("date.zig");
const refusal_module = @import("refusal.zig");
const metrics_module = @import("metrics.zig");
const status = @import("status.zig");
const admin_hosts = @import("admin_hosts.zig");
const Admin = @import("admin.zig").Admin;
const Writer = std.Io.Writer;

pub const json = "application/json";
const text_plain = "text/plain; charset=utf-8";
const page = @embedFile("admin/status.html");

pub const Request = struct {
    method: []const u8,
    path: []const u8,
    accept: []const u8,
};

pub const Answer = struct {
    status: u16 = 200,
    content_type: []const u8 = text_plain,
    /// Whole field lines with their CRLF.
    fields: []const u8 = "",
    body: []const u8,
    /// Freed with the answer.
    owned: ?[]u8 = null,

    pub fn deinit(self: *Answer, gpa: std.mem.Allocator) void {
        if (self.owned) |bytes| gpa.free(bytes);
        self.owned = null;
    }
};

pub fn refusal(code: u16, reason: []const u8) Answer {
    return .{ .status = code, .body = reason };
}

pub fn refusal_of_host(why: admin_hosts.Refusal) Answer {
    return switch (why) {
        .misdirected => refusal(421, "the admin listener does not answer for this host; name it " ++
            "in admin.hosts, or ask for the address that the listener is bound to\n"),
        .cross_site => refusal(403, "the admin listener does not answer requests of other " ++
            "sites (Origin, Sec-Fetch-Site); open its address directly\n"),
    };
}

const Surroundings = struct {
    date: *const [date_module.length]u8,
    is_head: bool,
    persists: bool,
    /// HTTP/1.0, where a connection that stays must be told of (RFC 9112 appendix C.2.2).
    is_old: bool,
};

/// The bytes of a response; the caller frees them.
pub fn compose(
    gpa: std.mem.Allocator,
    answer: *const Answer,
    around: Surroundings,
) error{OutOfMemory}![]u8 {
    var out: Writer.Allocating = .init(gpa);
    defer out.deinit();
    const connection = if (!around.persists)
        "Connection: close\r\n"
    else if (around.is_old)
        "Connection: keep-alive\r\n"
    else
        "";
    out.writer.print("HTTP/1.1 {d} {s}\r\nDate: {s}\r\nServer: serve-zig\r\n" ++
        "Content-Type: {s}\r\nContent-Length: {d}\r\nCache-Control: no-store\r\n" ++
        "X-Content-Type-Options: nosniff\r\n{s}{s}\r\n{s}", .{
        answer.status,
        refusal_module.phrase_of(answer.status),
        around.date,
        answer.content_type,
        answer.body.len,
        answer.fields,
        connection,
        if (around.is_head) "" else answer.body,
    }) catch return error.OutOfMemory;
    return out.toOwnedSlice();
}

pub const Pages = struct {
    policy_storage: [512]u8 = undefined,
    policy_length: usize,

    pub fn init() Pages {
        var self: Pages = .{ .policy_length = 0 };
        var writer: Writer = .fixed(&self.policy_storage);
        write_policy(&writer) catch unreachable; // two hashes of a known length
        self.policy_length = writer.end;
        return self;
    }

    pub fn answer(self: *const Pages, admin: *Admin, request: Request) Answer {
        const is_read = std.mem.eql(u8, request.method, "GET") or
            std.mem.eql(u8, request.method, "HEAD");
        const path = Path.of(request.path) orelse return refusal(404, "not found\n");
        if (!is_read) return .{
            .status = 405,
            .fields = "Allow: GET, HEAD\r\n",
            .body = "only GET and HEAD\n",
        };
        return switch (path) {
            .livez => livez(admin),
            .readyz => readyz(admin),
            .metrics => metrics(admin, request.accept),
            .status => write_answer(admin, json, status.write),
            .page => .{
                .content_type = "text/html; charset=utf-8",
                .fields = self.policy_storage[0..self.policy_length],
                .body = page,
            },
            .threads => self.without_stacks(admin), // answered elsewhere, when the stacks are there
        };
    }

    /// What is known of the threads without the GIL.
    pub fn without_stacks(_: *const Pages, admin: *Admin) Answer {
        var given = write_answer(admin, json, status.write_threads);
        given.status = 503;
        return given;
    }
};

const Path = enum {
    livez,
    readyz,
    metrics,
    status,
    threads,
    page,

    fn of(path: []const u8) ?Path {
        const names = std.StaticStringMap(Path).initComptime(.{
            .{ "/livez", .livez },
            .{ "/readyz", .readyz },
            .{ "/metrics", .metrics },
            .{ "/status", .status },
            .{ "/threads", .threads },
            .{ "/", .page },
        });
        return names.get(path);
    }
};

fn write_answer(
    admin: *Admin,
    content_type: []const u8,
    write: *const fn (*Admin, *Writer) Writer.Error!void,
) Answer {
    var out: Writer.Allocating = .init(admin.gpa);
    defer out.deinit();
    write(admin, &out.writer) catch return refusal(503, "out of memory\n");
    const bytes = out.toOwnedSlice() catch return refusal(503, "out of memory\n");
    return .{ .content_type = content_type, .body = bytes, .owned = bytes };
}

fn livez(admin: *Admin) Answer {
    if (admin.lives()) return .{ .body = "alive\n" };
    const server = admin.server.load(.acquire).?;
    const stalled_ms = server.health.stalled_ms.load(.acquire);
    const pulse = server.scheduler.pulse();
    const bytes = std.fmt.allocPrint(admin.gpa, "stalled: for {d} s no request has begun or " ++
        "ended and the GIL could not be taken; requests that wait: {d}\n", .{
        stalled_ms / std.time.ms_per_s,
        pulse.waiting,
    }) catch return refusal(503, "stalled\n");
    return .{ .status = 503, .body = bytes, .owned = bytes };
}

fn readyz(admin: *Admin) Answer {
    const stage = admin.stage.load(.acquire);
    const server = admin.server.load(.acquire);
    const reason = if (server) |one| one.unready_reason() else stage.describe();
    const why = reason orelse switch (stage) {
        .serving => return .{ .body = "ready\n" },
        else => stage.describe(),
    };
    const bytes = std.fmt.allocPrint(admin.gpa, "not ready: {s}\n", .{why}) catch
        return refusal(503, "not ready\n");
    return .{ .status = 503, .body = bytes, .owned = bytes };
}

fn metrics(admin: *Admin, accept: []const u8) Answer {
    const format = metrics_format(accept);
    var out: Writer.Allocating = .init(admin.gpa);
    defer out.deinit();
    const empty: metrics_module.Metrics = .empty;
    const server = admin.server.load(.acquire);
    const gauges = if (server) |one| one.gauges() else status.gauges_before(admin);
    const shown = if (server) |one| &one.metrics else &empty;
    shown.write(&out.writer, format, gauges) catch return refusal(503, "out of memory\n");
    const bytes = out.toOwnedSlice() catch return refusal(503, "out of memory\n");
    return .{ .content_type = format.content_type(), .body = bytes, .owned = bytes };
}

/// OpenMetrics for who prefers it; who does not say gets what everybody reads.
fn metrics_format(accept: []const u8) metrics_module.Format {
    var openmetrics: u32 = 0;
    var plain: u32 = 0;
    var ranges = std.mem.splitScalar(u8, accept, ',');
    while (ranges.next()) |range| {
        var parts = std.mem.splitScalar(u8, range, ';');
        const media_type = std.mem.trim(u8, parts.first(), " \t");
        const weight = weight_of(&parts);
        if (std.ascii.eqlIgnoreCase(media_type, "application/openmetrics-text")) {
            openmetrics = @max(openmetrics, weight);
        } else if (std.ascii.eqlIgnoreCase(media_type, "text/plain")) {
            plain = @max(plain, weight);
        }
    }
    return if (openmetrics > 0 and openmetrics >= plain) .openmetrics_1_0 else .prometheus_0_0_4;
}

/// In thousandths (RFC 9110 12.4.2); a weight that makes no sense counts as none given.
fn weight_of(parts: *std.mem.SplitIterator(u8, .scalar)) u32 {
    while (parts.next()) |part| {
        const text = std.mem.trim(u8, part, " \t");
        if (!std.ascii.startsWithIgnoreCase(text, "q=")) continue;
        if (!std.mem.startsWith(u8, text[2..], "0")) return 1000;
        var weight: u32 = 0;
        var unit: u32 = 100;
        for (text[@min(4, text.len)..]) |digit| {
            if (!std.ascii.isDigit(digit)) return 1000;
            weight += unit * (digit - '0');
            unit /= 10;
        }
        return weight;
    }
    return 1000;
}

/// The page may run its own script and style and speak to its own server; nothing else.
fn write_policy(writer: *Writer) Writer.Error!void {
    try writer.writeAll("Content-Security-Policy: default-src 'none'; " ++
        "connect-src 'self'; img-src data:; ");
    try write_hash(writer, "script-src", between("<script>", "</script>"));
    try write_hash(writer, "style-src", between("<style>", "</style>"));
    try writer.writeAll("base-uri 'none'; frame-ancestors 'none'\r\n");
}

fn between(comptime start: []const u8, comptime end: []const u8) []const u8 {
    const first = (std.mem.indexOf(u8, page, start) orelse return "") + start.len;
    const last = std.mem.indexOfPos(u8, page, first, end) orelse return "";
    return page[first..last];
}

fn write_hash(writer: *Writer, directive: []const u8, text: []const u8) Writer.Error!void {
    const Sha256 = std.crypto.hash.sha2.Sha256;
    var digest: [Sha256.digest_length]u8 = undefined;
    Sha256.hash(text, &digest, .{});
    try writer.print("{s} 'sha256-{b64}'; ", .{ directive, &digest });
}

test "admin: which format of the metrics a client gets" {
    const cases = [_]struct { []const u8, metrics_module.Format }{
        .{ "", .prometheus_0_0_4 },
        .{ "*/*", .prometheus_0_0_4 },
        .{ "text/plain", .prometheus_0_0_4 },
        .{ "application/openmetrics-text; version=1.0.0; charset=utf-8", .openmetrics_1_0 },
        // As Prometheus 2 and 3 ask.
        .{ "application/openmetrics-text;version=1.0.0,application/openmetrics-text;" ++
            "version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", .openmetrics_1_0 },
        .{ "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;" ++
            "encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8," ++
            "text/plain;version=0.0.4;q=0.7,*/*;q=0.1", .openmetrics_1_0 },
        .{ "application/openmetrics-text;q=0.3, text/plain;q=0.5", .prometheus_0_0_4 },
        .{ "application/openmetrics-text;q=0", .prometheus_0_0_4 },
        .{ "application/openmetrics-text;q=0.123456, text/plain;q=0.124", .prometheus_0_0_4 },
        .{ "application/openmetrics-text;q=nan, text/plain;q=", .openmetrics_1_0 },
    };
    for (cases) |case| try std.testing.expectEqual(case[1], metrics_format(case[0]));
}
