//! What becomes of a field in the trailer section of a chunked body. RFC 9110 6.5.1 forbids to send
//! there what a recipient must know before the content: framing, routing, authentication, request
//! modifiers, response controls and the format of the content.
//!
//! RFC 9112 7.1.2 lets a recipient discard such a field, which is safe where the field decides
//! nothing once it is gone. A field of framing, routing or trust is refused instead: no client
//! sends it there, and a proxy or an application that merges trailers into the header section would
//! read another message than this server did, or believe another client.
//!
//! Pure; any thread; GIL: not needed.

const std = @import("std");
const fields = @import("fields.zig");

pub const Rule = enum {
    /// The application gets it, in `serve_zig.trailers`.
    kept,
    /// Dropped; the request is served.
    discarded,
    /// The request is answered 400.
    refused,
};

/// Framing, and fields that are for one connection (RFC 9110 7.6.1).
const framing = "connection content-length expect http2-settings keep-alive proxy-connection te " ++
    "trailer transfer-encoding upgrade";
/// Where the request goes, and as which method.
const routing = "host max-forwards via x-http-method-override";
/// Who the client is, and what tells its own requests from forged ones. `Proxy` becomes HTTP_PROXY
/// in CGI-like environments (CVE-2016-5385).
const trust = "authorization cookie forwarded origin proxy proxy-authorization referer " ++
    "set-cookie x-api-key x-csrf-token x-csrftoken x-real-ip x-requested-with";
/// The rest of these is routing and trust as well: X-Forwarded-Host, X-Forwarded-For.
const forwarded_prefix = "x-forwarded-";

const modifiers = "accept accept-charset accept-encoding accept-language if-match " ++
    "if-modified-since if-none-match if-range if-unmodified-since prefer range";
/// RFC 9110 10.2 and 11.6, RFC 9111 5: these are for responses, and as harmless in a request.
const controls = "age cache-control date expires location pragma proxy-authenticate " ++
    "retry-after vary warning www-authenticate";
const format = "content-disposition content-encoding content-language content-location " ++
    "content-range content-type";

const Entry = struct { []const u8, Rule };

const entries = entries_of(framing ++ " " ++ routing ++ " " ++ trust, .refused) ++
    entries_of(modifiers ++ " " ++ controls ++ " " ++ format, .discarded);

fn entries_of(comptime names: []const u8, comptime rule: Rule) []const Entry {
    @setEvalBranchQuota(20_000);
    var list: []const Entry = &.{};
    var words = std.mem.tokenizeScalar(u8, names, ' ');
    while (words.next()) |name| list = list ++ &[_]Entry{.{ name, rule }};
    return list;
}

const rules: std.StaticStringMapWithEql(Rule, std.static_string_map.eqlAsciiIgnoreCase) = blk: {
    @setEvalBranchQuota(20_000);
    break :blk .initComptime(entries);
};

/// So much of a name tells its rule: a longer one, cut to this, is no name of the table.
pub const name_bytes_max = blk: {
    var longest: usize = forwarded_prefix.len;
    for (entries) |entry| longest = @max(longest, entry[0].len);
    break :blk longest + 1;
};

/// The rule for a name in any case, of which `name_bytes_max` bytes are enough.
pub fn rule_of(name: []const u8) Rule {
    if (std.ascii.startsWithIgnoreCase(name, forwarded_prefix)) return .refused;
    return rules.get(name) orelse .kept;
}

const testing = std.testing;

test "trailer fields: every field that the server knows has been decided on" {
    const kept = [_]fields.Name{
        // They neither modify the request nor does the server take anything from them there.
        .user_agent,                     .from,
        .upgrade_insecure_requests,      .dnt,
        .priority,                       .sec_gpc,
        .sec_fetch_site,                 .sec_fetch_mode,
        .sec_fetch_dest,                 .sec_fetch_user,
        .sec_ch_ua,                      .sec_ch_ua_mobile,
        .sec_ch_ua_platform,             .access_control_request_method,
        .access_control_request_headers, .x_request_id,
        .x_correlation_id,               .x_request_start,
        .x_queue_start,                  .traceparent,
        .tracestate,                     .baggage,
        .idempotency_key,
        // Integrity of the content, which is what trailers are for.
                       .content_md5,
    };
    for (0..fields.known_count) |index| {
        const name: fields.Name = @enumFromInt(index);
        const is_kept = std.mem.indexOfScalar(fields.Name, &kept, name) != null;
        errdefer std.debug.print("not decided: {s}\n", .{fields.wire_name(name)});
        try testing.expectEqual(is_kept, rule_of(fields.wire_name(name)) == .kept);
    }
}

test "trailer fields: framing, routing and trust are refused, in any case" {
    for ([_][]const u8{
        "Content-Length", "TRANSFER-ENCODING", "te",                "Host",          "Connection",
        "Authorization",  "cookie",            "X-Forwarded-For",   "Forwarded",     "Expect",
        "Upgrade",        "X-Forwarded-Proto", "x-forwarded-proto", "X-Forwarded-X", "Trailer",
    }) |name| try testing.expectEqual(.refused, rule_of(name));
}

test "trailer fields: format, controls and modifiers are discarded" {
    for ([_][]const u8{
        "Content-Type", "content-encoding", "Content-Range", "Vary",     "Cache-Control",
        "Pragma",       "DATE",             "Expires",       "Location", "If-None-Match",
    }) |name| try testing.expectEqual(.discarded, rule_of(name));
}

test "trailer fields: others are kept, and a name that is cut is none of the table" {
    for ([_][]const u8{
        "X-Checksum", "ETag", "Content-Digest", "Server-Timing", "", "x-forwarded",
    }) |name| try testing.expectEqual(.kept, rule_of(name));
    for (entries) |entry| {
        var longer: [name_bytes_max]u8 = @splat('a');
        @memcpy(longer[0..entry[0].len], entry[0]);
        try testing.expectEqual(.kept, rule_of(longer[0..]));
    }
}
