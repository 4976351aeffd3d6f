//! IP addresses and CIDR ranges (RFC 4291, RFC 4632), from text and as bits: which address is in
//! which range.
//!
//! An IPv4 address and its IPv4-mapped IPv6 form (RFC 4291 2.5.5.2) are one and the same here, so
//! that a client is found in an IPv4 range through whichever kind of socket it came. Pure; borrows
//! the caller's text for the call. Thread: any. GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");
const sys = @import("sys.zig");

/// ::ffff:0:0/96, where the IPv4 addresses are.
const mapped_prefix: u128 = 0xffff << 32;

pub const Ip = struct {
    /// As of an IPv6 address, the first byte highest.
    bits: u128,

    pub fn is_ipv4(self: Ip) bool {
        return self.bits >> 32 == mapped_prefix >> 32;
    }

    /// An address of either kind, without brackets, port or zone; null when the text is none.
    pub fn parse(text: []const u8) ?Ip {
        return parse_ipv4(text) orelse parse_ipv6(text);
    }

    /// Four decimal octets. No leading zeros: some readers take them for octal.
    pub fn parse_ipv4(text: []const u8) ?Ip {
        if (text.len > "255.255.255.255".len) return null;
        var bits: u32 = 0;
        var octets: u32 = 0;
        var parts = std.mem.splitScalar(u8, text, '.');
        while (parts.next()) |part| : (octets += 1) {
            if (octets == 4 or part.len > 3) return null;
            if (part.len == 0 or (part.len > 1 and part[0] == '0')) return null;
            var octet: u32 = 0;
            for (part) |byte| {
                if (!scanner.is_digit(byte)) return null;
                octet = octet * 10 + (byte - '0');
            }
            if (octet > 255) return null;
            bits = bits << 8 | octet;
        }
        return if (octets == 4) .{ .bits = mapped_prefix | bits } else null;
    }

    /// RFC 4291 2.2, all three forms. A zone means nothing to another machine and is refused.
    pub fn parse_ipv6(text: []const u8) ?Ip {
        if (text.len > "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len) return null;
        var groups: Groups = .{};
        var at: usize = 0;
        if (std.mem.startsWith(u8, text, "::")) {
            groups.gap = 0;
            at = 2;
        }
        while (at < text.len) {
            const end = scanner.find_byte(text, at, ':');
            const part = text[at..end];
            if (end == text.len and scanner.find_byte(part, 0, '.') != part.len) {
                if (!groups.add_ipv4(part)) return null;
                break;
            }
            if (!groups.add(part)) return null;
            if (end == text.len) break;
            at = end + 1;
            if (at == text.len) return null;
            if (text[at] == ':') {
                if (groups.gap != null) return null;
                groups.gap = groups.count;
                at += 1;
            }
        }
        return groups.join();
    }

    pub fn of(socket_address: *const sys.Address) ?Ip {
        const octets = sys.address_octets(socket_address) orelse return null;
        return .{ .bits = std.mem.readInt(u128, &octets, .big) };
    }

    /// With a port of 0 where none is known.
    pub fn address(self: Ip, port: u16) sys.Address {
        var octets: [16]u8 = undefined;
        std.mem.writeInt(u128, &octets, self.bits, .big);
        if (self.is_ipv4()) return sys.ipv4_address(octets[12..16].*, port);
        return sys.ipv6_address(octets, port);
    }
};

/// The groups of 16 bits of an IPv6 address, as they are read.
const Groups = struct {
    values: [8]u16 = @splat(0),
    count: usize = 0,
    /// How many stand before "::".
    gap: ?usize = null,

    fn add(self: *Groups, part: []const u8) bool {
        if (self.count == 8 or part.len == 0 or part.len > 4) return false;
        var value: u16 = 0;
        for (part) |byte| value = value << 4 | (scanner.hex_value(byte) orelse return false);
        self.values[self.count] = value;
        self.count += 1;
        return true;
    }

    fn add_ipv4(self: *Groups, part: []const u8) bool {
        if (self.count > 6) return false;
        const ipv4 = Ip.parse_ipv4(part) orelse return false;
        self.values[self.count] = @truncate(ipv4.bits >> 16);
        self.values[self.count + 1] = @truncate(ipv4.bits);
        self.count += 2;
        return true;
    }

    fn join(self: *const Groups) ?Ip {
        // "::" stands for one group at least.
        if (self.gap != null) {
            if (self.count > 7) return null;
        } else if (self.count != 8) return null;
        var bits: u128 = 0;
        for (self.values[0..self.count], 0..) |value, index| {
            if (index == self.gap) bits <<= @intCast(16 * (8 - self.count));
            bits = bits << 16 | value;
        }
        if (self.gap == self.count and self.count > 0) bits <<= @intCast(16 * (8 - self.count));
        return .{ .bits = bits };
    }
};

pub const Range = struct {
    network: u128,
    mask: u128,

    /// An address, or a network with the length of its prefix: "192.0.2.1", "10.0.0.0/8",
    /// "fd00::/8". Null for any other text, and where bits are set beyond the prefix: whoever wrote
    /// that meant another network, or one address.
    pub fn parse(text: []const u8) ?Range {
        const slash = scanner.find_byte(text, 0, '/');
        const ip = Ip.parse(text[0..slash]) orelse return null;
        var range: Range = .{ .network = ip.bits, .mask = std.math.maxInt(u128) };
        if (slash == text.len) return range;
        const is_dotted = Ip.parse_ipv4(text[0..slash]) != null;
        const length_max: u32 = if (is_dotted) 32 else 128;
        const length = parse_length(text[slash + 1 ..]) orelse return null;
        if (length > length_max) return null;
        const host_bits = length_max - length;
        range.mask = if (host_bits == 128) 0 else ~@as(u128, 0) << @intCast(host_bits);
        return if (ip.bits & range.mask == ip.bits) range else null;
    }

    pub fn contains(self: Range, ip: Ip) bool {
        if (ip.bits & self.mask != self.network) return false;
        // "::/0" means every IPv6 address, and not the IPv4 ones that are mapped into it.
        return self.mask >> 32 == std.math.maxInt(u96) or !ip.is_ipv4();
    }
};

/// Whether one of the ranges holds the address.
pub fn contains(ranges: []const Range, ip: Ip) bool {
    for (ranges) |range| if (range.contains(ip)) return true;
    return false;
}

/// 1*3DIGIT without leading zeros.
fn parse_length(digits: []const u8) ?u32 {
    if (digits.len == 0 or digits.len > 3) return null;
    if (digits.len > 1 and digits[0] == '0') return null;
    var length: u32 = 0;
    for (digits) |byte| {
        if (!scanner.is_digit(byte)) return null;
        length = length * 10 + (byte - '0');
    }
    return length;
}

const testing = std.testing;

fn expect_text(expected: []const u8, text: []const u8) !void {
    errdefer std.debug.print("of {s}\n", .{text});
    const ip = Ip.parse(text) orelse return error.TestUnexpectedResult;
    const address = ip.address(0);
    var storage: [sys.address_text_bytes_max]u8 = undefined;
    try testing.expectEqualStrings(expected, sys.address_text(&address, &storage));
    try testing.expectEqual(ip, Ip.of(&address).?);
}

test "addresses are read, and written by the system, as the same" {
    const same = [_][]const u8{
        "0.0.0.0",                                 "127.0.0.1",
        "255.255.255.255",                         "192.0.2.43",
        "::",                                      "::1",
        "1::",                                     "fe80::1:2",
        "2001:db8::1",                             "1:2:3:4:5:6:7:8",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:0:1::",
        "::2:3:4:5:6:7",
    };
    for (same) |text| try expect_text(text, text);
    try expect_text("abcd:ef01::", "ABCD:EF01::");
    try expect_text("2001:db8::1", "2001:0db8:0000:0000:0000:0000:0000:0001");
    try expect_text("64:ff9b::c000:201", "64:ff9b::192.0.2.1");
    try expect_text("1:2:3:4:5:6:c000:201", "1:2:3:4:5:6:192.0.2.1");
    // The IPv4-mapped form is the IPv4 address.
    try expect_text("192.0.2.1", "::ffff:192.0.2.1");
    try expect_text("192.0.2.1", "::FFFF:c000:0201");
    try expect_text("192.0.2.1", "0:0:0:0:0:ffff:192.0.2.1");
}

test "what is no address" {
    const texts = [_][]const u8{
        "",                      " ",                 "1",
        "1.2.3",                 "1.2.3.4.5",         "1.2.3.4.",
        ".1.2.3.4",              "1..3.4",            "1.2.3.256",
        "1.2.3.0004",            "01.2.3.4",          "1.2.3.04",
        "0x7f.0.0.1",            "1.2.3.-4",          "1.2.3.+4",
        "1.2.3.4 ",              " 1.2.3.4",          "1.2.3.4:80",
        "1.2.3.4/8",             "2130706433",        ":",
        ":::",                   "::1::",             "1::2::3",
        ":1",                    "1:",                ":1::",
        "1:2:3:4:5:6:7",         "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::",
        "::1:2:3:4:5:6:7:8",     "12345::",           "g::",
        "::1%eth0",              "[::1]",             "::1.2.3",
        "::1.2.3.256",           "1.2.3.4::",         "::1.2.3.4:5",
        "1:2:3:4:5:6:7:1.2.3.4", "::ffff:1.2.3.4:80", "::ffff:01.2.3.4",
        "\x00",                  "1.2.3.4\x00",       "unknown",
    };
    for (texts) |text| {
        errdefer std.debug.print("accepted: {s}\n", .{text});
        try testing.expectEqual(null, Ip.parse(text));
    }
}

fn holds(range: []const u8, address: []const u8) bool {
    return contains(&.{Range.parse(range).?}, Ip.parse(address).?);
}

test "a range holds what its prefix says" {
    try testing.expect(holds("10.0.0.0/8", "10.0.0.0"));
    try testing.expect(holds("10.0.0.0/8", "10.255.255.255"));
    try testing.expect(!holds("10.0.0.0/8", "11.0.0.0"));
    try testing.expect(!holds("10.0.0.0/8", "9.255.255.255"));
    try testing.expect(holds("192.0.2.1", "192.0.2.1"));
    try testing.expect(!holds("192.0.2.1", "192.0.2.0"));
    try testing.expect(holds("192.0.2.128/25", "192.0.2.128"));
    try testing.expect(!holds("192.0.2.128/25", "192.0.2.127"));
    try testing.expect(holds("192.0.2.1/32", "192.0.2.1"));
    try testing.expect(holds("0.0.0.0/0", "255.1.2.3"));
    try testing.expect(holds("2001:db8::/32", "2001:db8:ffff::1"));
    try testing.expect(!holds("2001:db8::/32", "2001:db9::"));
    try testing.expect(holds("::1/128", "::1"));
    try testing.expect(holds("fe80::/10", "febf::1"));
    try testing.expect(!holds("fe80::/10", "fec0::1"));
}

test "IPv4 and its mapped form are one, but not all of IPv6" {
    try testing.expect(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
    try testing.expect(holds("::ffff:10.0.0.0/104", "10.1.2.3"));
    try testing.expect(!holds("::ffff:10.0.0.0/104", "11.1.2.3"));
    try testing.expect(holds("::ffff:0:0/96", "10.1.2.3"));
    try testing.expect(holds("::/0", "2001:db8::1"));
    try testing.expect(!holds("::/0", "10.1.2.3"));
    try testing.expect(!holds("0.0.0.0/0", "2001:db8::1"));
    try testing.expect(!holds("0.0.0.0/0", "::a00:1"));
}

test "what is no range" {
    const texts = [_][]const u8{
        "",              "/8",          "10.0.0.0/",      "10.0.0.0/33", "::/129",
        "10.0.0.0/-1",   "10.0.0.0/+8", "10.0.0.0/08",    "10.0.0.0/ 8", "10.0.0.0/8/8",
        "10.0.0.0/0008", "10.1.2.3/8",  "2001:db8::1/32", "unix",        "10.0.0.0/255.0.0.0",
        "10.0.0/8",      "0.0.0.1/0",   "localhost",      "::1/127",     "10.0.0.0/a",
    };
    for (texts) |text| {
        errdefer std.debug.print("accepted: {s}\n", .{text});
        try testing.expectEqual(null, Range.parse(text));
    }
}

test "any bytes are answered without a panic" {
    var random = std.Random.DefaultPrng.init(0x4291);
    const alphabet = "0123456789abcdef::::..../%x \x00\xff";
    var buffer: [50]u8 = undefined;
    for (0..100_000) |_| {
        const text = buffer[0..random.random().uintAtMost(usize, buffer.len)];
        for (text) |*byte| byte.* = alphabet[random.random().uintLessThan(usize, alphabet.len)];
        const range = Range.parse(text) orelse continue;
        try testing.expect(range.contains(.{ .bits = range.network }));
    }
}
