//! Why the server itself answered a request, as words for metrics and logs: a set that is known at
//! compile time, so that no client can make a new series.
//!
//! The words of the parsers' errors are taken from them. Pure; any thread; GIL: not needed.

const std = @import("std");
const body = @import("body.zig");
const chunked = @import("chunked.zig");
const forwarded = @import("forwarded.zig");
const request_head = @import("request_head.zig");

/// What a reason is counted as.
pub const Kind = enum {
    /// The client's mistake, or more than it may send.
    bad_request,
    /// The server had not enough of something.
    shed,
    /// The client was too slow.
    timeout,
    /// Nobody waited for the answer any more.
    dropped,
    /// The client took nothing of its answer while others needed the room. Counted with the
    /// connections that were closed.
    evicted,
};

const Entry = struct { []const u8, Kind };

/// Those that no parser has. The first stands for whatever is not in the list.
const own = [_]Entry{
    .{ "other", .bad_request },
    .{ "queue_full", .shed },
    .{ "queue_timeout", .shed },
    .{ "out_of_memory", .shed },
    .{ "no_descriptors", .shed },
    .{ "no_space_for_body", .shed },
    .{ "temporary_file", .shed },
    .{ "head_timeout", .timeout },
    .{ "body_timeout", .timeout },
    .{ "write_timeout", .timeout },
    .{ "proxy_header_timeout", .timeout },
    .{ "client_gone", .dropped },
    .{ "stalled", .evicted },
    .{ "connect", .bad_request },
    .{ "misdirected", .bad_request },
    .{ "body_too_large", .bad_request },
    .{ "bad_proxy_header", .bad_request },
};

const parsers = .{ request_head, chunked, forwarded };

const entries: []const Entry = blk: {
    @setEvalBranchQuota(20_000);
    var list: []const Entry = &own;
    for (parsers) |parser| {
        for (@typeInfo(parser.Error).error_set.?) |failure| {
            const word = parser.reason_of(@field(parser.Error, failure.name));
            const is_known = for (list) |entry| {
                if (std.mem.eql(u8, entry[0], word)) break true;
            } else false;
            if (!is_known) list = list ++ [_]Entry{.{ word, .bad_request }};
        }
    }
    break :blk list;
};

pub const count = entries.len;

/// Index into tables of `count`.
pub const Reason = u8;

pub fn of(word: []const u8) Reason {
    for (entries, 0..) |entry, index| {
        if (std.mem.eql(u8, entry[0], word)) return @intCast(index);
    }
    return 0;
}

pub fn name(reason: Reason) []const u8 {
    return entries[reason][0];
}

pub fn kind(reason: Reason) Kind {
    return entries[reason][1];
}

const testing = std.testing;

test "reasons: every one has a word of its own" {
    for (0..count) |index| {
        try testing.expectEqual(index, of(name(@intCast(index))));
    }
    try testing.expectEqual(Kind.bad_request, kind(of("bare_lf")));
    try testing.expectEqual(Kind.bad_request, kind(of("bad_chunk_size")));
    try testing.expectEqual(Kind.shed, kind(of("queue_full")));
    try testing.expectEqualStrings("other", name(of("unheard_of")));
}

test "reasons: every one that the sources give is in the list" {
    var found: usize = 0;
    inline for (.{ @embedFile("poller.zig"), @embedFile("server.zig") }) |source| {
        // refuse(connection, 400, "word") and the like, as they stand on one line.
        var lines = std.mem.splitScalar(u8, source, '\n');
        while (lines.next()) |line| {
            const is_refusal = std.mem.indexOf(u8, line, "refuse(connection, ") != null or
                std.mem.indexOf(u8, line, "shed(connection, ") != null or
                std.mem.indexOf(u8, line, "turn_away(connection, ") != null or
                std.mem.indexOf(u8, line, ".reason = \"") != null;
            if (!is_refusal) continue;
            const start = (std.mem.indexOfScalar(u8, line, '"') orelse continue) + 1;
            const end = std.mem.indexOfScalarPos(u8, line, start, '"') orelse continue;
            if (of(line[start..end]) == 0) {
                std.debug.print("not in reasons.zig: {s}\n", .{line[start..end]});
                return error.UnknownReason;
            }
            found += 1;
        }
    }
    try testing.expect(found >= 10);
}

test "reasons: every failure of a parser or of a body has a word in the list" {
    inline for (parsers) |parser| {
        inline for (@typeInfo(parser.Error).error_set.?) |failure| {
            try testing.expect(of(parser.reason_of(@field(parser.Error, failure.name))) != 0);
        }
    }
    inline for (@typeInfo(body.Error).error_set.?) |failure| {
        const refusal = body.refusal_of(@field(body.Error, failure.name));
        try testing.expect(of(refusal.reason) != 0);
        try testing.expect(refusal.status >= 400);
    }
}
