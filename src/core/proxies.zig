//! The proxies that the operator trusts, and what follows from that for a connection and a request.
//!
//! Whether a peer is trusted is decided once, when its connection is accepted, or when a PROXY
//! header has said whose it is. Read-only after the start, so any thread; GIL: not needed.

const std = @import("std");
const cidr = @import("cidr.zig");
const connection_module = @import("connection.zig");
const exchange_module = @import("exchange.zig");
const forwarded = @import("forwarded.zig");
const proxy_header = @import("proxy_header.zig");
const sys = @import("sys.zig");
const Connection = connection_module.Connection;
const Exchange = exchange_module.Exchange;

pub const InitError = error{ OutOfMemory, BadProxySetting };

pub const Proxies = struct {
    ranges: []const cidr.Range,
    /// Whoever connects to a unix socket of ours.
    unix: bool,
    flavour: forwarded.Flavour,
    /// Trusted peers begin with a PROXY header.
    protocol: bool,

    /// `trusted` is a list of ranges, and the word "unix", separated by commas; `headers` is
    /// "x-forwarded" or "forwarded".
    pub fn init(
        gpa: std.mem.Allocator,
        trusted: []const u8,
        headers: []const u8,
        protocol: bool,
    ) InitError!Proxies {
        const flavour = forwarded.Flavour.parse(headers) orelse return error.BadProxySetting;
        var ranges: std.ArrayList(cidr.Range) = .empty;
        errdefer ranges.deinit(gpa);
        var unix = false;
        var entries = std.mem.tokenizeScalar(u8, trusted, ',');
        while (entries.next()) |entry| {
            if (std.mem.eql(u8, entry, "unix")) {
                unix = true;
            } else {
                const range = cidr.Range.parse(entry) orelse return error.BadProxySetting;
                try ranges.append(gpa, range);
            }
        }
        return .{
            .ranges = try ranges.toOwnedSlice(gpa),
            .unix = unix,
            .flavour = flavour,
            .protocol = protocol,
        };
    }

    pub fn deinit(self: *Proxies, gpa: std.mem.Allocator) void {
        gpa.free(self.ranges);
    }

    /// Whether what comes from this address is believed.
    pub fn trusts(self: *const Proxies, address: *const sys.Address) bool {
        if (cidr.Ip.of(address)) |ip| return cidr.contains(self.ranges, ip);
        return self.unix;
    }

    /// Makes the connection that of the client whom its PROXY header names. What this one sends is
    /// its own: forwarded fields are believed only if it is a trusted proxy, too.
    pub fn introduce(
        self: *const Proxies,
        connection: *Connection,
        source: proxy_header.Source,
    ) void {
        switch (source) {
            // "The receiver must use the real connection endpoints" for the address. HAProxy says
            // LOCAL of its health checks, but also of clients that came through a unix socket.
            .local, .unknown => connection.trusted = false,
            .unix => {
                connection.address = sys.no_address;
                connection.trusted = self.unix;
            },
            .address => |address| {
                connection.address = address;
                connection.trusted = self.trusts(&address);
            },
        }
    }

    /// Takes down what the head's forwarded fields say. The connection is trusted.
    pub fn read_claims(self: *const Proxies, exchange: *Exchange) forwarded.Error!void {
        exchange.claims = try forwarded.read(
            exchange.bytes,
            exchange.head.lines(),
            self.flavour,
            self.ranges,
        );
    }
};

const testing = std.testing;

fn init_test(trusted: []const u8) !Proxies {
    return Proxies.init(testing.allocator, trusted, "x-forwarded", true);
}

test "addresses, ranges and unix sockets are trusted as configured" {
    var nobody = try init_test("");
    defer nobody.deinit(testing.allocator);
    try testing.expect(!nobody.trusts(&sys.ipv4_address(.{ 127, 0, 0, 1 }, 1)));
    try testing.expect(!nobody.trusts(&sys.no_address));

    var some = try init_test("10.0.0.0/8,::1,unix");
    defer some.deinit(testing.allocator);
    try testing.expect(some.trusts(&sys.ipv4_address(.{ 10, 9, 8, 7 }, 1)));
    try testing.expect(!some.trusts(&sys.ipv4_address(.{ 11, 9, 8, 7 }, 1)));
    const mapped: [16]u8 = @as([10]u8, @splat(0)) ++ [_]u8{ 0xff, 0xff, 10, 0, 0, 1 };
    try testing.expect(some.trusts(&sys.ipv6_address(mapped, 1)));
    try testing.expect(some.trusts(&sys.ipv6_address(@as([15]u8, @splat(0)) ++ [1]u8{1}, 1)));
    try testing.expect(some.trusts(&sys.no_address));
}

test "settings that cannot be understood are refused" {
    const gpa = testing.allocator;
    const bad = error.BadProxySetting;
    try testing.expectError(bad, Proxies.init(gpa, "10.0.0.0/8,x", "x-forwarded", false));
    try testing.expectError(bad, Proxies.init(gpa, "10.0.0.1/8", "x-forwarded", false));
    try testing.expectError(bad, Proxies.init(gpa, "", "x_forwarded", false));
}

test "a PROXY header passes the connection on, and trust with it or not" {
    var proxies = try init_test("10.0.0.0/8");
    defer proxies.deinit(testing.allocator);
    const peer = sys.ipv4_address(.{ 10, 0, 0, 1 }, 1);
    const client = sys.ipv4_address(.{ 192, 0, 2, 7 }, 2);
    const inner = sys.ipv4_address(.{ 10, 0, 0, 9 }, 3);
    const cases = [_]struct { proxy_header.Source, sys.Address, bool }{
        .{ .local, peer, false },
        .{ .unknown, peer, false },
        .{ .unix, sys.no_address, false },
        .{ .{ .address = client }, client, false },
        .{ .{ .address = inner }, inner, true },
    };
    for (cases) |case| {
        var connection: Connection = .{ .index = 0, .address = peer, .trusted = true };
        proxies.introduce(&connection, case[0]);
        try testing.expectEqual(case[2], connection.trusted);
        try testing.expectEqual(sys.address_port(&case[1]), sys.address_port(&connection.address));
    }
}
