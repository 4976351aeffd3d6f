//! Which content codings a client takes, and which it likes best (RFC 9110 8.4.1, 12.5.3).
//!
//! Pure; any thread; GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");
const field_values = @import("field_values.zig");
const RequestHead = @import("request_head.zig").RequestHead;

/// Those that files are kept in beside the original; of two that a client likes alike the first is
/// taken, since it is smaller as a rule.
pub const Coding = enum {
    br,
    zstd,
    gzip,

    /// What Content-Encoding says.
    pub fn name(self: Coding) []const u8 {
        return @tagName(self);
    }

    /// Behind the name of the file.
    pub fn suffix(self: Coding) []const u8 {
        return switch (self) {
            .br => ".br",
            .zstd => ".zst",
            .gzip => ".gz",
        };
    }
};

const count = @typeInfo(Coding).@"enum".fields.len;

/// Codings that are to be preferred to none, best first.
pub const Accepted = struct {
    storage: [count]Coding = undefined,
    len: usize = 0,

    pub fn codings(self: *const Accepted) []const Coding {
        return self.storage[0..self.len];
    }
};

/// Thousandths.
const Weight = u16;

const Weights = struct {
    of: [count]?Weight = @splat(null),
    identity: ?Weight = null,
    any: ?Weight = null,
};

/// Without the field none is taken: a client that names no coding may know none.
pub fn accepted(head: *const RequestHead, bytes: []const u8) Accepted {
    var lines: field_values.Lines = .{ .head = head, .bytes = bytes, .name = .accept_encoding };
    var weights: Weights = .{};
    while (lines.next()) |value| {
        var elements: field_values.Elements = .{ .rest = value };
        while (elements.next()) |element| note(&weights, element);
    }
    var result: Accepted = .{};
    // Not named, it is acceptable and the last choice.
    const identity = weights.identity orelse 0;
    var last: Weight = 1001;
    while (next_weight(&weights, last)) |weight| : (last = weight) {
        if (weight < identity) break;
        for (0..count) |index| {
            if (weight_of(&weights, index) != weight) continue;
            result.storage[result.len] = @enumFromInt(index);
            result.len += 1;
        }
    }
    return result;
}

fn weight_of(weights: *const Weights, index: usize) Weight {
    return weights.of[index] orelse weights.any orelse 0;
}

/// The highest below `last`; null when only refusals are left.
fn next_weight(weights: *const Weights, last: Weight) ?Weight {
    var found: Weight = 0;
    for (0..count) |index| {
        const weight = weight_of(weights, index);
        if (weight < last) found = @max(found, weight);
    }
    return if (found > 0) found else null;
}

fn note(weights: *Weights, element: []const u8) void {
    const semicolon = std.mem.indexOfScalar(u8, element, ';') orelse element.len;
    const token = scanner.trim_whitespace(element[0..semicolon]);
    const weight = parse_weight(element[semicolon..]) orelse return;
    const equals = scanner.equals_ignoring_case;
    if (equals(token, "br")) weights.of[@intFromEnum(Coding.br)] = weight;
    if (equals(token, "zstd")) weights.of[@intFromEnum(Coding.zstd)] = weight;
    // RFC 9110 8.4.1.3: x-gzip is the same.
    if (equals(token, "gzip") or equals(token, "x-gzip")) {
        weights.of[@intFromEnum(Coding.gzip)] = weight;
    }
    if (equals(token, "identity")) weights.identity = weight;
    if (equals(token, "*")) weights.any = weight;
}

/// RFC 9110 12.4.2: OWS ";" OWS "q=" qvalue. Null for anything else.
fn parse_weight(parameter: []const u8) ?Weight {
    if (parameter.len == 0) return 1000;
    const text = scanner.trim_whitespace(parameter[1..]);
    if (text.len < 3 or text.len > 7) return null;
    if ((text[0] != 'q' and text[0] != 'Q') or text[1] != '=') return null;
    const digits = text[2..];
    if (digits[0] != '0' and digits[0] != '1') return null;
    if (digits.len > 1 and digits[1] != '.') return null;
    var weight: Weight = (digits[0] - '0') * @as(Weight, 1000);
    var unit: Weight = 100;
    for (digits[@min(2, digits.len)..]) |byte| {
        if (!scanner.is_digit(byte)) return null;
        weight += (byte - '0') * unit;
        unit /= 10;
    }
    return if (weight <= 1000) weight else null;
}

const testing = std.testing;

fn expect(comptime lines: []const u8, expected: []const Coding) !void {
    var storage: field_values.TestRequest = undefined;
    const request = storage.init(lines);
    errdefer std.debug.print("{s}\n", .{lines});
    const found = accepted(&request.head, request.bytes);
    try testing.expectEqualSlices(Coding, expected, found.codings());
}

fn expect_value(comptime value: []const u8, expected: []const Coding) !void {
    try expect("Accept-Encoding: " ++ value ++ "\r\n", expected);
}

test "codings in the client's order, then in ours" {
    try expect_value("gzip, deflate, br, zstd", &.{ .br, .zstd, .gzip });
    try expect_value("gzip", &.{.gzip});
    try expect_value("GZIP", &.{.gzip});
    try expect_value("x-gzip", &.{.gzip});
    try expect_value("br;q=0.5, gzip;q=0.8", &.{ .gzip, .br });
    try expect_value("br;q=0.001 , gzip;q=1.000", &.{ .gzip, .br });
    try expect_value("gzip ; q=0.3, zstd; q=0.2, br;q=0.1", &.{ .gzip, .zstd, .br });
    try expect("Accept-Encoding: gzip\r\nAccept-Encoding: br\r\n", &.{ .br, .gzip });
}

test "refused ones" {
    try expect_value("gzip;q=0", &.{});
    try expect_value("gzip;q=0.000, br", &.{.br});
    try expect_value("identity", &.{});
    try expect_value("", &.{});
    try expect("", &.{});
    try expect_value("deflate, compress", &.{});
    try expect_value("gzipped, brotli", &.{});
}

test "any other one" {
    try expect_value("*", &.{ .br, .zstd, .gzip });
    try expect_value("*;q=0", &.{});
    try expect_value("*;q=0, gzip", &.{.gzip});
    try expect_value("gzip;q=0, *", &.{ .br, .zstd });
    try expect_value("*;q=0.5, gzip", &.{ .gzip, .br, .zstd });
}

test "none at all may be liked better" {
    try expect_value("identity, gzip;q=0.5", &.{});
    try expect_value("identity;q=0.5, gzip", &.{.gzip});
    try expect_value("identity;q=0.5, gzip;q=0.5", &.{.gzip});
    try expect_value("identity;q=0.5, gzip;q=0.4, br;q=0.9", &.{.br});
    try expect_value("identity;q=0, gzip;q=0.1", &.{.gzip});
}

test "an element that is not understood is not taken" {
    inline for (.{
        "gzip;q",         "gzip;q=",   "gzip;q=2", "gzip;q=1.1",   "gzip;q=1.001", "gzip;q=.5",
        "gzip;q=0.12345", "gzip;q=-1", "gzip;r=1", "gzip;q=0.5;x", "gzip;;q=1",    "gz ip",
    }) |value| try expect_value(value, &.{});
}
