//! For whom the admin listener answers: a web page must not read it through a visitor's browser.
//!
//! A page of evil.example whose name is made to resolve to 127.0.0.1 (DNS rebinding) is of one
//! origin with the listener, but its requests name evil.example as the host. So the host must be
//! an address that the listener is bound to, localhost, or one of `admin.hosts`. A request without
//! a host is not a browser's, and neither is one on a unix socket. Pure; GIL: not needed.

const std = @import("std");
const host_module = @import("host.zig");
const cidr = @import("cidr.zig");
const request_head = @import("request_head.zig");
const RequestHead = request_head.RequestHead;

pub const Allowed = struct {
    /// Names and addresses, an address of IPv6 in brackets; in lines. "*": every host.
    hosts: []const u8 = "",
    /// Bound to every interface: any address may be ours. Rebinding takes a name.
    any_address: bool = false,

    fn allows(self: Allowed, host: []const u8) bool {
        if (is_same(host, "localhost")) return true;
        const address = address_of(host);
        if (address != null and self.any_address) return true;
        var lines = std.mem.splitScalar(u8, self.hosts, '\n');
        while (lines.next()) |line| {
            if (std.mem.eql(u8, line, "*") or is_same(host, line)) return true;
            if (address) |ip| if (address_of(line)) |own| {
                if (std.meta.eql(ip, own)) return true;
            };
        }
        return false;
    }
};

pub const Refusal = enum { misdirected, cross_site };

/// Why a request is not answered; null where it is.
pub fn refusal(
    allowed: Allowed,
    head: *const RequestHead,
    bytes: []const u8,
    is_unix: bool,
) ?Refusal {
    const authority = head.authority.of(bytes);
    for (head.lines()) |line| switch (line.known) {
        .sec_fetch_site => if (is_same(line.value.of(bytes), "cross-site")) return .cross_site,
        .origin => if (!is_unix and !is_own_origin(line.value.of(bytes), authority)) {
            return .cross_site;
        },
        else => {},
    };
    if (is_unix or authority.len == 0) return null;
    const parts = host_module.split(authority) orelse return .misdirected;
    return if (allowed.allows(parts.host)) null else .misdirected;
}

/// Whether scheme and authority of an Origin field are those of the request (RFC 6454 4).
fn is_own_origin(origin: []const u8, authority: []const u8) bool {
    const end = std.mem.indexOf(u8, origin, "://") orelse return false;
    const default_port: u16 = if (is_same(origin[0..end], "http"))
        80
    else if (is_same(origin[0..end], "https"))
        443
    else
        return false;
    const of_origin = host_module.split(origin[end + 3 ..]) orelse return false;
    const of_request = host_module.split(authority) orelse return false;
    return is_same(of_origin.host, of_request.host) and
        (of_origin.port orelse default_port) == (of_request.port orelse default_port);
}

fn is_same(host: []const u8, other: []const u8) bool {
    return std.ascii.eqlIgnoreCase(without_dot(host), without_dot(other));
}

/// The dot of a name that is written down to the root.
fn without_dot(host: []const u8) []const u8 {
    return if (std.mem.endsWith(u8, host, ".")) host[0 .. host.len - 1] else host;
}

fn address_of(host: []const u8) ?cidr.Ip {
    const is_literal = std.mem.startsWith(u8, host, "[") and std.mem.endsWith(u8, host, "]");
    return cidr.Ip.parse(if (is_literal) host[1 .. host.len - 1] else host);
}

const testing = std.testing;

fn expect(expected: ?Refusal, allowed: Allowed, fields: []const u8, is_unix: bool) !void {
    var storage: [512]u8 = undefined;
    const text = try std.fmt.bufPrint(&storage, "GET /status HTTP/1.0\r\n{s}\r\n", .{fields});
    var lines: [8]request_head.FieldLine = undefined;
    var head: RequestHead = .init(&lines);
    try testing.expect(try head.parse(text, .{
        .request_line_bytes_max = 64,
        .head_bytes_max = storage.len,
        .field_lines_max = lines.len,
    }));
    try testing.expectEqual(expected, refusal(allowed, &head, text, is_unix));
}

test "the admin listener answers for its own addresses and names alone" {
    const local: Allowed = .{ .hosts = "127.0.0.1\nadmin.internal\n[2001:db8::1]" };
    for ([_][]const u8{
        "",
        "Host: 127.0.0.1:9100\r\n",
        "Host: LocalHost\r\n",
        "Host: localhost.:1\r\n",
        "Host: Admin.Internal:80\r\n",
        "Host: [2001:DB8:0::1]:9100\r\n",
    }) |fields| try expect(null, local, fields, false);
    for ([_][]const u8{
        "Host: evil.example:9100\r\n",
        "Host: 10.0.0.1\r\n",
        "Host: [::1]\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: internal\r\n",
        "Host: 127.0.0.1.evil.example\r\n",
    }) |fields| try expect(.misdirected, local, fields, false);
    try expect(null, local, "Host: evil.example\r\n", true);
    try expect(null, .{ .hosts = "*" }, "Host: evil.example\r\n", false);
}

test "bound to every interface the admin listener answers for every address" {
    const every: Allowed = .{ .any_address = true };
    try expect(null, every, "Host: 10.1.2.3:9100\r\n", false);
    try expect(null, every, "Host: [fd00::7]:9100\r\n", false);
    try expect(.misdirected, every, "Host: app:9100\r\n", false);
}

test "a request of another site's page is refused" {
    const local: Allowed = .{ .hosts = "127.0.0.1" };
    const host = "Host: 127.0.0.1:9100\r\n";
    try expect(.cross_site, local, host ++ "Sec-Fetch-Site: cross-site\r\n", false);
    try expect(.cross_site, local, "Sec-Fetch-Site: cross-site\r\n", true);
    try expect(null, local, host ++ "Sec-Fetch-Site: same-origin\r\n", false);
    try expect(null, local, host ++ "Sec-Fetch-Site: none\r\n", false);
    try expect(null, local, host ++ "Origin: http://127.0.0.1:9100\r\n", false);
    try expect(null, local, "Host: 127.0.0.1\r\nOrigin: https://127.0.0.1:443\r\n", false);
    for ([_][]const u8{
        "null", "http://127.0.0.1:3000", "http://evil.example:9100", "file://", "x",
    }) |origin| {
        var storage: [128]u8 = undefined;
        const fields = try std.fmt.bufPrint(&storage, host ++ "Origin: {s}\r\n", .{origin});
        try expect(.cross_site, local, fields, false);
    }
}
