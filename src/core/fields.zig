//! The field names that the server knows, their wire names and their WSGI environ keys, and the
//! lookup from one to the other. A name is found by its length and then by comparing whole words,
//! letters folded: no hashing, no copy.
//!
//! Data: tables made at compile time. Thread: any. GIL: not needed.

const std = @import("std");
const assert = std.debug.assert;
const scanner = @import("scanner.zig");

/// Those of one length are tried in this order, so frequent ones stand first.
pub const Name = enum(u8) {
    host,
    connection,
    accept,
    user_agent,
    accept_encoding,
    accept_language,
    cookie,
    content_length,
    content_type,
    referer,
    origin,
    authorization,
    cache_control,
    pragma,
    transfer_encoding,
    expect,
    x_forwarded_for,
    x_forwarded_proto,
    x_forwarded_host,
    x_forwarded_port,
    x_forwarded_prefix,
    x_forwarded_server,
    x_forwarded_ssl,
    x_real_ip,
    x_request_id,
    x_correlation_id,
    x_request_start,
    x_queue_start,
    forwarded,
    via,
    traceparent,
    tracestate,
    baggage,
    if_none_match,
    if_modified_since,
    if_match,
    if_unmodified_since,
    if_range,
    range,
    upgrade,
    upgrade_insecure_requests,
    sec_fetch_site,
    sec_fetch_mode,
    sec_fetch_dest,
    sec_fetch_user,
    sec_ch_ua,
    sec_ch_ua_mobile,
    sec_ch_ua_platform,
    sec_gpc,
    dnt,
    priority,
    x_requested_with,
    x_csrftoken,
    x_csrf_token,
    x_api_key,
    x_http_method_override,
    access_control_request_method,
    access_control_request_headers,
    accept_charset,
    content_encoding,
    content_language,
    content_range,
    content_disposition,
    content_md5,
    date,
    from,
    idempotency_key,
    keep_alive,
    max_forwards,
    proxy,
    proxy_authorization,
    proxy_connection,
    set_cookie,
    te,
    trailer,
    /// A valid name with an underscore. It must not reach the environ: X_Y and X-Y would become
    /// one key there, so that a client could spoof what a proxy sets.
    underscored,
    /// Any other valid name.
    other,
};

/// How many names there are, the two kinds of unknown ones included: for tables indexed by Name.
pub const count = @typeInfo(Name).@"enum".fields.len;
/// Of these, `known_count` have a wire name; they come first.
pub const known_count = count - 2;
/// Longest known wire name.
pub const name_bytes_max = blk: {
    var longest: usize = 0;
    for (wire_names[0..known_count]) |name| longest = @max(longest, name.len);
    break :blk longest;
};
const name_bytes_min = blk: {
    var shortest: usize = name_bytes_max;
    for (wire_names[0..known_count]) |name| shortest = @min(shortest, name.len);
    break :blk shortest;
};

/// Prefix of the environ keys that stand for field lines (PEP 3333, RFC 3875 4.1.18).
pub const environ_prefix = "HTTP_";

const wire_names: [count][:0]const u8 = blk: {
    @setEvalBranchQuota(20_000);
    var names: [count][:0]const u8 = undefined;
    for (@typeInfo(Name).@"enum".fields, 0..) |field, index| {
        assert(field.value == index);
        names[index] = replaced(field.name, .wire);
    }
    names[@intFromEnum(Name.underscored)] = "";
    names[@intFromEnum(Name.other)] = "";
    break :blk names;
};

const environ_keys: [count]?[:0]const u8 = blk: {
    @setEvalBranchQuota(20_000);
    var keys: [count]?[:0]const u8 = undefined;
    for (@typeInfo(Name).@"enum".fields, 0..) |field, index| {
        keys[index] = environ_prefix ++ replaced(field.name, .environ);
    }
    // RFC 3875 4.1.2 and 4.1.3: these two are request meta-variables of their own.
    keys[@intFromEnum(Name.content_length)] = "CONTENT_LENGTH";
    keys[@intFromEnum(Name.content_type)] = "CONTENT_TYPE";
    // HTTP_PROXY configures HTTP clients in a CGI-like environment: "httpoxy", CVE-2016-5385.
    keys[@intFromEnum(Name.proxy)] = null;
    keys[@intFromEnum(Name.underscored)] = null;
    keys[@intFromEnum(Name.other)] = null;
    break :blk keys;
};

fn replaced(comptime tag: []const u8, comptime to: enum { wire, environ }) [:0]const u8 {
    var bytes: [tag.len:0]u8 = undefined;
    for (tag, 0..) |byte, index| {
        bytes[index] = switch (to) {
            .wire => if (byte == '_') '-' else byte,
            .environ => std.ascii.toUpper(byte),
        };
    }
    bytes[tag.len] = 0;
    const result = bytes;
    return &result;
}

/// The lower-case name as it goes over the wire; "" for `underscored` and `other`.
pub fn wire_name(name: Name) [:0]const u8 {
    return wire_names[@intFromEnum(name)];
}

/// The WSGI environ key: "HTTP_ACCEPT_ENCODING", "CONTENT_TYPE". Null when there is none:
/// `proxy` and `underscored` never reach the environ, `other` is for environ_key_write.
pub fn environ_key(name: Name) ?[:0]const u8 {
    return environ_keys[@intFromEnum(name)];
}

/// Writes the environ key of a field name that is not in the table ("X-Custom" as
/// "HTTP_X_CUSTOM") and returns it, in `destination`. Null when it does not fit.
pub fn environ_key_write(destination: []u8, name: []const u8) ?[]u8 {
    if (destination.len < environ_prefix.len) return null;
    if (destination.len - environ_prefix.len < name.len) return null;
    @memcpy(destination[0..environ_prefix.len], environ_prefix);
    const rest = destination[environ_prefix.len..][0..name.len];
    for (rest, name) |*to, byte| {
        to.* = if (byte == '-') '_' else std.ascii.toUpper(byte);
    }
    return destination[0 .. environ_prefix.len + name.len];
}

/// The known name that these bytes are, in any case; `other` when none. It does not check that
/// an unknown name is a token: that is `classify`.
pub fn lookup(bytes: []const u8) Name {
    switch (bytes.len) {
        inline name_bytes_min...name_bytes_max => |len| {
            const exact = bytes[0..len];
            inline for (comptime names_of_length(len)) |name| {
                if (matches(exact, comptime wire_name(name))) return name;
            }
            return .other;
        },
        else => return .other,
    }
}

/// Like lookup, and null when the bytes are no field name at all (RFC 9110 5.1).
pub inline fn classify(bytes: []const u8) ?Name {
    // Whatever is in the table is a token, so that most names skip the check by table.
    const name = lookup(bytes);
    if (name != .other) return name;
    return switch (scanner.token_kind(bytes)) {
        .not_token => null,
        .plain => .other,
        .underscored => .underscored,
    };
}

fn names_of_length(comptime len: usize) []const Name {
    @setEvalBranchQuota(100_000);
    var names: []const Name = &.{};
    for (wire_names[0..known_count], 0..) |name, index| {
        if (name.len == len) names = names ++ &[_]Name{@enumFromInt(index)};
    }
    return names;
}

/// Whole words, the last one overlapping the one before it.
inline fn matches(bytes: anytype, comptime name: []const u8) bool {
    const Word = switch (name.len) {
        0 => unreachable,
        1 => u8,
        2, 3 => u16,
        4...7 => u32,
        else => u64,
    };
    const word_len = @sizeOf(Word);
    comptime var offset = 0;
    inline while (offset + word_len < name.len) : (offset += word_len) {
        if (!matches_word(Word, bytes, name, offset)) return false;
    }
    return matches_word(Word, bytes, name, name.len - word_len);
}

inline fn matches_word(
    comptime Word: type,
    bytes: anytype,
    comptime name: []const u8,
    comptime offset: usize,
) bool {
    const word_len = @sizeOf(Word);
    const expected = comptime std.mem.readInt(Word, name[offset..][0..word_len], .little);
    // 0x20 only where a letter is expected: folded elsewhere, CR would equal a hyphen.
    const fold = comptime blk: {
        var bits: [word_len]u8 = @splat(0);
        for (&bits, name[offset..][0..word_len]) |*bit, byte| {
            if (std.ascii.isAlphabetic(byte)) bit.* = 0x20;
        }
        break :blk std.mem.readInt(Word, &bits, .little);
    };
    return std.mem.readInt(Word, bytes[offset..][0..word_len], .little) | fold == expected;
}

const testing = std.testing;

test "every known name is found, in any case" {
    var buffer: [name_bytes_max]u8 = undefined;
    for (0..known_count) |index| {
        const name: Name = @enumFromInt(index);
        const wire = wire_name(name);
        try testing.expectEqual(name, lookup(wire));
        try testing.expectEqual(name, lookup(std.ascii.upperString(&buffer, wire)));
        try testing.expectEqual(name, classify(wire).?);
    }
}

test "a name that differs in one byte is not found" {
    var buffer: [name_bytes_max]u8 = undefined;
    for (0..known_count) |index| {
        const name: Name = @enumFromInt(index);
        const wire = wire_name(name);
        const changed = buffer[0..wire.len];
        for (0..wire.len) |position| {
            for (0..256) |value| {
                @memcpy(changed, wire);
                changed[position] = @intCast(value);
                const same = std.ascii.eqlIgnoreCase(changed, wire);
                try testing.expectEqual(same, lookup(changed) == name);
            }
        }
        try testing.expect(lookup(wire[0 .. wire.len - 1]) != name);
    }
}

test "environ keys" {
    try testing.expectEqualStrings("HTTP_ACCEPT_ENCODING", environ_key(.accept_encoding).?);
    try testing.expectEqualStrings("HTTP_HOST", environ_key(.host).?);
    try testing.expectEqualStrings("HTTP_X_CSRFTOKEN", environ_key(.x_csrftoken).?);
    try testing.expectEqualStrings("HTTP_SEC_CH_UA", environ_key(.sec_ch_ua).?);
    try testing.expectEqualStrings("CONTENT_TYPE", environ_key(.content_type).?);
    try testing.expectEqualStrings("CONTENT_LENGTH", environ_key(.content_length).?);
    try testing.expectEqual(null, environ_key(.proxy));
    try testing.expectEqual(null, environ_key(.underscored));
    try testing.expectEqual(null, environ_key(.other));
}

test "the environ key of an unknown name is written" {
    var buffer: [32]u8 = undefined;
    try testing.expectEqualStrings("HTTP_X_CUSTOM", environ_key_write(&buffer, "x-Custom").?);
    try testing.expectEqualStrings("HTTP_", environ_key_write(buffer[0..5], "").?);
    try testing.expectEqual(null, environ_key_write(buffer[0..4], ""));
    try testing.expect(environ_key_write(buffer[0..6], "x") != null);
    try testing.expectEqual(null, environ_key_write(buffer[0..6], "xy"));
}

test "written keys agree with the table" {
    var buffer: [name_bytes_max + environ_prefix.len]u8 = undefined;
    for (0..known_count) |index| {
        const name: Name = @enumFromInt(index);
        const key = environ_key(name) orelse continue;
        if (!std.mem.startsWith(u8, key, environ_prefix)) continue;
        try testing.expectEqualStrings(key, environ_key_write(&buffer, wire_name(name)).?);
    }
}

test "unknown names are classified" {
    try testing.expectEqual(Name.other, classify("X-Custom").?);
    try testing.expectEqual(Name.underscored, classify("X_Forwarded_For").?);
    try testing.expectEqual(Name.underscored, classify("Content_Length").?);
    try testing.expectEqual(null, classify(""));
    try testing.expectEqual(null, classify("Host "));
    try testing.expectEqual(null, classify("X(Y)"));
    try testing.expectEqual(null, classify("na\xefve"));
}
