//! The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt, 2.1 and 2.2): the header by
//! which a proxy says, before the first byte of its client's, whose connection it passes on.
//!
//! Nothing is repaired: a header that is not exactly one of the two is an error, and an error is
//! final. Of version 2 the type-length-value fields are skipped. Pure; borrows the caller's bytes
//! for the call. Thread: any. GIL: not needed.

const std = @import("std");
const cidr = @import("cidr.zig");
const scanner = @import("scanner.zig");
const sys = @import("sys.zig");

/// Of a header of version 1, its CRLF included (2.1: "a 108-byte buffer is always enough", of which
/// one is the C string's zero).
pub const version_1_bytes_max = 107;
/// Of what follows the first 16 bytes of version 2: addresses and the fields after them. Enough for
/// a certificate's names; a certificate itself is not sent in any of the registered fields.
pub const version_2_rest_bytes_max = 4096;
/// The longest header of all.
pub const bytes_max = version_2_start_bytes + version_2_rest_bytes_max;

const version_1_start = "PROXY ";
const version_2_signature = "\r\n\r\n\x00\r\nQUIT\n";
const version_2_start_bytes = 16;

/// Whose connection it is.
pub const Source = union(enum) {
    /// The proxy's own, as it says (the command LOCAL: a health check).
    local,
    /// Of a client that the proxy has no address for, or none that the protocol can carry.
    unknown,
    /// Of a client that reached the proxy through a unix socket.
    unix,
    address: sys.Address,
};

pub const Error = error{
    /// The bytes are no PROXY header, or a broken one.
    BadProxyHeader,
    /// It is longer than the limits above.
    ProxyHeaderTooLong,
};

pub const Parser = struct {
    /// Valid once `feed` has returned true.
    source: Source = .unknown,
    /// How long the header was: what follows is the client's.
    header_bytes: u32 = 0,

    /// Reads `bytes`, which begin with the same bytes as in the call before. True when the header
    /// is complete, false when more must come. An error is told at the first byte that is wrong.
    pub fn feed(self: *Parser, bytes: []const u8) Error!bool {
        if (bytes.len == 0) return false;
        return switch (bytes[0]) {
            version_1_start[0] => self.feed_version_1(bytes),
            version_2_signature[0] => self.feed_version_2(bytes),
            else => error.BadProxyHeader,
        };
    }

    fn feed_version_1(self: *Parser, bytes: []const u8) Error!bool {
        if (!try starts_with(bytes, version_1_start)) return false;
        const visible = bytes[0..@min(bytes.len, version_1_bytes_max)];
        const end = scanner.find_control(visible, version_1_start.len);
        if (end + 1 >= visible.len) {
            if (visible.len == version_1_bytes_max) return error.ProxyHeaderTooLong;
            if (end < visible.len and visible[end] != '\r') return error.BadProxyHeader;
            return false;
        }
        if (visible[end] != '\r' or visible[end + 1] != '\n') return error.BadProxyHeader;
        self.source = try parse_line(visible[version_1_start.len..end]);
        self.header_bytes = @intCast(end + 2);
        return true;
    }

    fn feed_version_2(self: *Parser, bytes: []const u8) Error!bool {
        if (!try starts_with(bytes, version_2_signature)) return false;
        if (bytes.len < version_2_start_bytes) return false;
        const start = bytes[0..version_2_start_bytes];
        const rest_len = std.mem.readInt(u16, start[14..16], .big);
        // All that can be wrong is told before the rest has come.
        if (rest_len > version_2_rest_bytes_max) return error.ProxyHeaderTooLong;
        const kind = try parse_kind(start[12], start[13]);
        if (rest_len < kind.address_bytes()) return error.BadProxyHeader;
        if (bytes.len < version_2_start_bytes + rest_len) return false;
        self.source = kind.source(bytes[version_2_start_bytes..][0..rest_len]);
        self.header_bytes = version_2_start_bytes + rest_len;
        return true;
    }
};

/// Whether all of `expected` is there; an error as soon as it cannot be any more.
fn starts_with(bytes: []const u8, expected: []const u8) Error!bool {
    const length = @min(bytes.len, expected.len);
    if (!std.mem.eql(u8, bytes[0..length], expected[0..length])) return error.BadProxyHeader;
    return length == expected.len;
}

/// 2.1: what follows "PROXY " in a line of version 1.
fn parse_line(line: []const u8) Error!Source {
    var words = std.mem.splitScalar(u8, line, ' ');
    const family = words.next() orelse return error.BadProxyHeader;
    // Whatever follows has to be ignored.
    if (std.mem.eql(u8, family, "UNKNOWN")) return .unknown;
    const parse_ip = if (std.mem.eql(u8, family, "TCP4"))
        &cidr.Ip.parse_ipv4
    else if (std.mem.eql(u8, family, "TCP6"))
        &cidr.Ip.parse_ipv6
    else
        return error.BadProxyHeader;
    const source = parse_ip(words.next() orelse "") orelse return error.BadProxyHeader;
    _ = parse_ip(words.next() orelse "") orelse return error.BadProxyHeader;
    const port = try parse_port(words.next() orelse "");
    _ = try parse_port(words.next() orelse "");
    if (words.next() != null) return error.BadProxyHeader;
    return .{ .address = source.address(port) };
}

/// 2.1: a decimal number from 0 to 65535 without leading zeros.
fn parse_port(digits: []const u8) Error!u16 {
    if (digits.len == 0 or digits.len > 5) return error.BadProxyHeader;
    if (digits.len > 1 and digits[0] == '0') return error.BadProxyHeader;
    var port: u32 = 0;
    for (digits) |byte| {
        if (!scanner.is_digit(byte)) return error.BadProxyHeader;
        port = port * 10 + (byte - '0');
    }
    return std.math.cast(u16, port) orelse error.BadProxyHeader;
}

/// What a header of version 2 holds.
const Kind = enum {
    local,
    unknown,
    ipv4,
    ipv6,
    unix,

    /// Of source and destination; the fields come after them.
    fn address_bytes(self: Kind) u32 {
        return switch (self) {
            .local, .unknown => 0,
            .ipv4 => 2 * 4 + 2 * 2,
            .ipv6 => 2 * 16 + 2 * 2,
            .unix => 2 * 108,
        };
    }

    fn source(self: Kind, rest: []const u8) Source {
        return switch (self) {
            .local => .local,
            .unknown => .unknown,
            .unix => .unix,
            .ipv4 => .{ .address = sys.ipv4_address(rest[0..4].*, read_port(rest[8..10])) },
            // An IPv4-mapped address is an IPv4 one: `cidr.Ip` makes it that.
            .ipv6 => .{ .address = blk: {
                const ip: cidr.Ip = .{ .bits = std.mem.readInt(u128, rest[0..16], .big) };
                break :blk ip.address(read_port(rest[32..34]));
            } },
        };
    }
};

fn read_port(bytes: *const [2]u8) u16 {
    return std.mem.readInt(u16, bytes, .big);
}

/// 2.2, the 13th and 14th byte: version and command, address family and transport protocol.
fn parse_kind(version_and_command: u8, family_and_transport: u8) Error!Kind {
    if (version_and_command >> 4 != 2) return error.BadProxyHeader;
    const family = family_and_transport >> 4;
    const transport = family_and_transport & 15;
    switch (version_and_command & 15) {
        0 => return .local, // "the receiver must ignore" the family and the addresses
        1 => {},
        else => return error.BadProxyHeader,
    }
    if (family > 3 or transport > 2) return error.BadProxyHeader;
    if (family == 0 or transport == 0) return .unknown;
    // A datagram's client (HTTP/3 at the proxy) is as well known as a stream's.
    return switch (family) {
        1 => .ipv4,
        2 => .ipv6,
        else => .unix,
    };
}

const testing = std.testing;

fn expect_header(expected: ?[]const u8, port: u16, bytes: []const u8, rest: []const u8) !void {
    var parser: Parser = .{};
    // However it is split, nothing is decided before the last byte.
    for (0..bytes.len - rest.len) |length| {
        try testing.expectEqual(false, try parser.feed(bytes[0..length]));
    }
    for (bytes.len - rest.len..bytes.len + 1) |length| {
        try testing.expectEqual(true, try parser.feed(bytes[0..length]));
        try testing.expectEqual(bytes.len - rest.len, parser.header_bytes);
    }
    const text = expected orelse return;
    var storage: [sys.address_text_bytes_max]u8 = undefined;
    const address = parser.source.address;
    try testing.expectEqualStrings(text, sys.address_text(&address, &storage));
    try testing.expectEqual(port, sys.address_port(&address) orelse 0);
}

fn expect_source(expected: std.meta.Tag(Source), bytes: []const u8) !void {
    try expect_header(null, 0, bytes, "");
    var parser: Parser = .{};
    try testing.expect(try parser.feed(bytes));
    try testing.expectEqual(expected, std.meta.activeTag(parser.source));
}

fn expect_error(expected: Error, bytes: []const u8) !void {
    errdefer std.debug.print("of {any}\n", .{bytes});
    var parser: Parser = .{};
    for (0..bytes.len + 1) |length| {
        const complete = parser.feed(bytes[0..length]) catch |err| {
            try testing.expectEqual(expected, err);
            // It stays so with the bytes that follow.
            try testing.expectError(expected, parser.feed(bytes));
            return;
        };
        try testing.expect(!complete);
    }
    return error.TestExpectedError;
}

test "headers of version 1" {
    const request = "GET / HTTP/1.1\r\n";
    const ipv4 = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
    try expect_header("192.0.2.7", 56324, ipv4 ++ request, request);
    const ipv6 = "PROXY TCP6 2001:db8::7 ::1 1 65535\r\n";
    try expect_header("2001:db8::7", 1, ipv6 ++ request, request);
    const mapped = "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:10.0.0.1 0 0\r\n";
    try expect_header("192.0.2.7", 0, mapped, "");
    const all_ones = "ffff:" ** 7 ++ "ffff";
    const longest = "PROXY TCP6 " ++ all_ones ++ " " ++ all_ones ++ " 65535 65535\r\n";
    try testing.expectEqual(version_1_bytes_max - 3, longest.len);
    try expect_header(all_ones, 65535, longest, "");
    try expect_source(.unknown, "PROXY UNKNOWN\r\n");
    try expect_source(.unknown, "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n");
    try expect_source(.unknown, "PROXY UNKNOWN " ++ "x" ** (version_1_bytes_max - 16) ++ "\r\n");
}

test "what is no header of version 1" {
    const lines = [_][]const u8{
        "GET / HTTP/1.1\r\n",
        "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY\r\n",
        "PROXY \r\n",
        "PROXYTCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 1.2.3.4\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4  1 2\r\n",
        "PROXY TCP4 1.2.3.4\t1.2.3.4 1 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rG",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\x00\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 100000 2\r\n",
        "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP4 ::ffff:1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY TCP6 ::1 1.2.3.4 1 2\r\n",
        "PROXY TCP6 [::1] [::1] 1 2\r\n",
        "PROXY TCP6 ::1%lo ::1 1 2\r\n",
        "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY unknown\r\n",
    };
    for (lines) |line| try expect_error(error.BadProxyHeader, line);
    const long = "PROXY UNKNOWN " ++ "x" ** (version_1_bytes_max - 15);
    try expect_error(error.ProxyHeaderTooLong, long ++ "\r\n");
    try expect_error(error.ProxyHeaderTooLong, "PROXY TCP4 " ++ "1" ** 200);
}

inline fn version_2(
    comptime command: u8,
    comptime family: u8,
    comptime rest: []const u8,
) []const u8 {
    const length = [2]u8{ rest.len >> 8, rest.len & 0xff };
    return comptime version_2_signature ++ [2]u8{ command, family } ++ length ++ rest;
}

const ipv4_addresses = "\xc0\x00\x02\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb";
const ipv6_addresses = "\x20\x01\x0d\xb8" ++ "\x00" ** 11 ++ "\x07" ++ "\x00" ** 15 ++
    "\x01\x00\x01\xff\xff";

test "headers of version 2" {
    const request = "GET / HTTP/1.1\r\n";
    try expect_header("192.0.2.7", 56324, version_2(0x21, 0x11, ipv4_addresses), "");
    try expect_header(
        "192.0.2.7",
        56324,
        version_2(0x21, 0x11, ipv4_addresses) ++ request,
        request,
    );
    try expect_header("2001:db8::7", 1, version_2(0x21, 0x21, ipv6_addresses), "");
    // Fields after the addresses are skipped, also if they are none.
    const fields = "\x03\x00\x04\x00\x00\x00\x00" ++ "\x01\x00\x02h2" ++ "\x20\xff\xff";
    try expect_header("192.0.2.7", 56324, version_2(0x21, 0x11, ipv4_addresses ++ fields), "");
    const most = ipv6_addresses ++ "\x04" ** (version_2_rest_bytes_max - ipv6_addresses.len);
    try expect_header("2001:db8::7", 1, version_2(0x21, 0x21, most), "");
    // A datagram.
    try expect_header("192.0.2.7", 56324, version_2(0x21, 0x12, ipv4_addresses), "");
    try expect_source(.unix, version_2(0x21, 0x31, "/run/proxy" ++ "\x00" ** 206));
    try expect_source(.local, version_2(0x20, 0x00, ""));
    try expect_source(.local, version_2(0x20, 0x11, ipv4_addresses));
    try expect_source(.local, version_2(0x20, 0xff, "anything"));
    try expect_source(.unknown, version_2(0x21, 0x00, ""));
    try expect_source(.unknown, version_2(0x21, 0x00, "anything"));
    try expect_source(.unknown, version_2(0x21, 0x10, ipv4_addresses));
}

test "an IPv4-mapped source of version 2 is an IPv4 one" {
    const source = "\x00" ** 10 ++ "\xff\xff\xc0\x00\x02\x07";
    const addresses = source ++ "\x00" ** 16 ++ "\x00\x01\x00\x02";
    try expect_header("192.0.2.7", 1, version_2(0x21, 0x21, addresses), "");
}

test "what is no header of version 2" {
    const bad = [_][]const u8{
        "\r\nGET / HTTP/1.1\r\n",
        "\r\n\r\n\x00\r\nQUIT\r",
        version_2(0x11, 0x11, ipv4_addresses),
        version_2(0x31, 0x11, ipv4_addresses),
        version_2(0x22, 0x11, ipv4_addresses),
        version_2(0x2f, 0x11, ipv4_addresses),
        version_2(0x21, 0x13, ipv4_addresses),
        version_2(0x21, 0x41, ipv4_addresses),
        version_2(0x21, 0xf1, ipv4_addresses),
        version_2(0x21, 0x11, ""),
        version_2(0x21, 0x11, ipv4_addresses[0..11]),
        version_2(0x21, 0x21, ipv6_addresses[0..35]),
        version_2(0x21, 0x31, "\x00" ** 215),
    };
    for (bad) |bytes| try expect_error(error.BadProxyHeader, bytes);
    const long = version_2(0x21, 0x11, "\x00" ** (version_2_rest_bytes_max + 1));
    try expect_error(error.ProxyHeaderTooLong, long);
    try expect_error(error.ProxyHeaderTooLong, version_2(0x20, 0x00, "\x00" ** 5000));
}

test "any bytes are answered without a panic, and alike however they are split" {
    var random_source = std.Random.DefaultPrng.init(0x50524f5859);
    const random = random_source.random();
    const seeds = [_][]const u8{
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nGET",
        "PROXY TCP6 2001:db8::7 ::1 1 65535\r\n",
        "PROXY UNKNOWN\r\n",
        version_2(0x21, 0x11, ipv4_addresses) ++ "GET",
        version_2(0x21, 0x21, ipv6_addresses),
        version_2(0x20, 0x00, ""),
    };
    var buffer: [128]u8 = undefined;
    for (0..50_000) |_| {
        const seed = seeds[random.uintLessThan(usize, seeds.len)];
        const bytes = buffer[0..seed.len];
        @memcpy(bytes, seed);
        for (0..random.uintAtMost(usize, 3)) |_| {
            bytes[random.uintLessThan(usize, bytes.len)] = random.int(u8);
        }
        var whole: Parser = .{};
        const verdict = whole.feed(bytes);
        var parts: Parser = .{};
        const in_parts = for (0..bytes.len + 1) |length| {
            if (parts.feed(bytes[0..length]) catch |err| break @as(Error!bool, err)) break true;
        } else false;
        try testing.expectEqual(verdict, in_parts);
        if (verdict catch false) try testing.expectEqual(whole.header_bytes, parts.header_bytes);
    }
}
