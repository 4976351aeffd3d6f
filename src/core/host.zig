//! The grammar of an authority without userinfo, as the Host field and absolute targets carry it:
//! uri-host [ ":" port ] (RFC 9110 7.2, RFC 3986 3.2.2). Stricter than RFC 3986 in one place: a
//! comma is refused, because it is how two Host fields look once something has joined them.
//!
//! Data: borrows the caller's slice. Thread: any. GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");

pub const Authority = struct {
    /// Borrows from the value; an IP literal keeps its brackets.
    host: []const u8,
    /// Null when there is none, or an empty one ("example.org:").
    port: ?u16,
};

/// unreserved and sub-delims without the comma: what a reg-name holds beside "%" HEXDIG HEXDIG.
const name_bytes: [256]bool = blk: {
    var table: [256]bool = @splat(false);
    for ('a'..'z' + 1) |byte| table[byte] = true;
    for ('A'..'Z' + 1) |byte| table[byte] = true;
    for ('0'..'9' + 1) |byte| table[byte] = true;
    for ("-._~!$&'()*+;=") |byte| table[byte] = true;
    break :blk table;
};

/// Whether the value names a host: grammatical, and not empty.
pub fn valid(value: []const u8) bool {
    return split(value) != null;
}

/// Host and port; null when the value is not valid.
pub fn split(value: []const u8) ?Authority {
    if (value.len == 0) return null;
    const host_len = if (value[0] == '[') literal_len(value) else name_len(value);
    if (host_len == 0) return null;
    const host = value[0..host_len];
    if (host_len == value.len) return .{ .host = host, .port = null };
    if (value[host_len] != ':') return null;
    const digits = value[host_len + 1 ..];
    if (digits.len == 0) return .{ .host = host, .port = null };
    return .{ .host = host, .port = parse_port(digits) orelse return null };
}

/// 1*DIGIT up to 65535.
fn parse_port(digits: []const u8) ?u16 {
    var port: u32 = 0;
    for (digits) |byte| {
        if (!scanner.is_digit(byte)) return null;
        port = port * 10 + (byte - '0');
        if (port > std.math.maxInt(u16)) return null;
    }
    return @intCast(port);
}

/// Length of the reg-name or IPv4 address at the start of the value; 0 when there is none.
fn name_len(value: []const u8) usize {
    var at: usize = 0;
    while (at < value.len) {
        if (name_bytes[value[at]]) {
            at += 1;
        } else if (value[at] == '%') {
            if (value.len - at < 3) return 0;
            if (scanner.hex_value(value[at + 1]) == null) return 0;
            if (scanner.hex_value(value[at + 2]) == null) return 0;
            at += 3;
        } else {
            return at;
        }
    }
    return at;
}

/// Length of the IP-literal at the start of the value, brackets included; 0 when it is none.
fn literal_len(value: []const u8) usize {
    const end = scanner.find_byte(value, 0, ']');
    if (end == value.len) return 0;
    const address = value[1..end];
    if (!valid_ipv6(address) and !valid_ip_future(address)) return 0;
    return end + 1;
}

/// RFC 3986 3.2.2: IPv6address. No zone identifier: it means nothing to another machine.
fn valid_ipv6(address: []const u8) bool {
    var groups: u32 = 0;
    var compressed = false;
    var at: usize = 0;
    if (std.mem.startsWith(u8, address, "::")) {
        compressed = true;
        at = 2;
        if (at == address.len) return true;
    }
    while (true) {
        const start = at;
        while (at < address.len and scanner.hex_value(address[at]) != null) at += 1;
        if (at < address.len and address[at] == '.') {
            if (!valid_ipv4(address[start..])) return false;
            groups += 2;
            break;
        }
        if (at == start or at - start > 4) return false;
        groups += 1;
        if (groups > 8) return false;
        if (at == address.len) break;
        if (address[at] != ':') return false;
        at += 1;
        if (at == address.len) return false;
        if (address[at] == ':') {
            if (compressed) return false;
            compressed = true;
            at += 1;
            if (at == address.len) break;
        }
    }
    // "::" stands for one group at least.
    return if (compressed) groups <= 7 else groups == 8;
}

/// Four decimal octets, without leading zeros.
fn valid_ipv4(address: []const u8) bool {
    var octets: u32 = 0;
    var parts = std.mem.splitScalar(u8, address, '.');
    while (parts.next()) |part| {
        if (part.len == 0 or part.len > 3) return false;
        if (part.len > 1 and part[0] == '0') return false;
        var octet: u32 = 0;
        for (part) |byte| {
            if (!scanner.is_digit(byte)) return false;
            octet = octet * 10 + (byte - '0');
        }
        octets += 1;
        if (octet > 255 or octets > 4) return false;
    }
    return octets == 4;
}

/// "v" 1*HEXDIG "." 1*( unreserved / sub-delims / ":" )
fn valid_ip_future(address: []const u8) bool {
    if (address.len == 0 or address[0] | 0x20 != 'v') return false;
    const dot = scanner.find_byte(address, 0, '.');
    if (dot == address.len or dot == 1 or dot + 1 == address.len) return false;
    for (address[1..dot]) |byte| {
        if (scanner.hex_value(byte) == null) return false;
    }
    for (address[dot + 1 ..]) |byte| {
        if (!name_bytes[byte] and byte != ':') return false;
    }
    return true;
}

const testing = std.testing;

test "names, addresses and ports that are valid" {
    const values = [_][]const u8{
        "a",
        "example.org",
        "example.org.",
        "EXAMPLE.org:80",
        "under_score.example",
        "xn--bcher-kva.example",
        "127.0.0.1",
        "127.0.0.1:65535",
        "999.1.1.1",
        "example.org:",
        "example.org:0",
        "example.org:00080",
        "a%2Fb",
        "a!$&'()*+;=~",
        "[::]",
        "[::1]:8000",
        "[1:2:3:4:5:6:7:8]",
        "[1::]",
        "[1:2:3:4:5:6:7::]",
        "[::2:3:4:5:6:7:8]",
        "[fe80::1:2]",
        "[::ffff:192.0.2.1]",
        "[1:2:3:4:5:6:192.0.2.1]",
        "[ABCD:ef01::]",
        "[v1.a:b]",
        "[VF.x]:1",
    };
    for (values) |value| {
        errdefer std.debug.print("refused: {s}\n", .{value});
        try testing.expect(valid(value));
    }
}

test "values that are no authority" {
    const values = [_][]const u8{
        "",
        ":80",
        ":",
        "a:b",
        "a:-1",
        "a:+1",
        "a:65536",
        "a:99999999999999999999",
        "a:80:80",
        "user@example.org",
        "user:password@example.org",
        "a,b",
        "a, b",
        "a b",
        " a",
        "a/b",
        "a\\b",
        "a?b",
        "a#b",
        "a\"b",
        "<a>",
        "a%",
        "a%2",
        "a%2g",
        "a\x00b",
        "b\xc3\xbccher.example",
        "[",
        "[]",
        "[::1",
        "::1",
        "[::1]x",
        "[::1]:x",
        "[::1]80",
        "[:::]",
        "[:1]",
        "[1:]",
        "[1]",
        "[1:2:3:4:5:6:7]",
        "[1:2:3:4:5:6:7:8:9]",
        "[1:2:3:4:5:6:7:8::]",
        "[1::2::3]",
        "[12345::]",
        "[g::]",
        "[::1%25eth0]",
        "[::ffff:192.0.2]",
        "[::ffff:192.0.2.256]",
        "[::ffff:192.0.2.01]",
        "[::192.0.2.1:1]",
        "[1:2:3:4:5:6:7:192.0.2.1]",
        "[192.0.2.1]",
        "[v.a]",
        "[v1.]",
        "[v1]",
        "[vg.a]",
        "[v1.a,b]",
        "a]",
        "a[::1]",
    };
    for (values) |value| {
        errdefer std.debug.print("accepted: {s}\n", .{value});
        try testing.expect(!valid(value));
    }
}

test "split gives host and port" {
    const named = split("example.org:8080").?;
    try testing.expectEqualStrings("example.org", named.host);
    try testing.expectEqual(8080, named.port.?);
    const literal = split("[::1]").?;
    try testing.expectEqualStrings("[::1]", literal.host);
    try testing.expectEqual(null, literal.port);
    try testing.expectEqual(null, split("example.org:").?.port);
    try testing.expectEqual(null, split("a b"));
}

test "any bytes are answered without a panic" {
    var random = std.Random.DefaultPrng.init(0x9110_7_2);
    const alphabet = "[]:.%v019afg,@ /\x00\xff";
    var buffer: [24]u8 = undefined;
    for (0..50_000) |_| {
        const value = buffer[0..random.random().uintAtMost(usize, buffer.len)];
        for (value) |*byte| byte.* = alphabet[random.random().uintLessThan(usize, alphabet.len)];
        const authority = split(value) orelse continue;
        try testing.expect(authority.host.len > 0);
        try testing.expect(std.mem.indexOfAny(u8, authority.host, ",@ /") == null);
    }
}
