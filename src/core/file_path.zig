//! From the path of a request to the path of a file below a directory: what may be asked for, and
//! what never leaves the directory, whatever is asked.
//!
//! The file system has the last word (sys.open_beneath); here is refused what has no business in a
//! URL of a file: dot segments and dotfiles, empty segments, encoded slashes, backslashes and NUL.
//! Pure; any thread; GIL: not needed.

const std = @import("std");
const target = @import("target.zig");

/// Longest path of a file, without the directory.
pub const path_bytes_max = 4096;

pub const FilePath = struct {
    /// Relative; empty for the directory itself; without the slash at its end.
    path: []const u8,
    /// A directory is meant: the path ended with a slash.
    is_directory: bool,
};

/// The path as the file system would have it, decoded into `storage` where that is needed; null
/// when it is too long for any file.
pub fn decode(storage: *[path_bytes_max]u8, path: []const u8) ?[]const u8 {
    // "http://host" has none, and means the root (RFC 9112 3.2.1).
    if (path.len == 0) return "/";
    if (path.len > path_bytes_max) return null;
    if (!target.has_percent(path)) return path;
    return target.percent_decode(storage, path);
}

/// Whether a route is the path or a part of it that ends at a slash. `route` is "" or begins with
/// a slash and does not end with one.
pub fn is_below(decoded: []const u8, route: []const u8) bool {
    if (!std.mem.startsWith(u8, decoded, route)) return false;
    return decoded.len == route.len or decoded[route.len] == '/';
}

/// What is asked for below the route; null for what is refused. `raw` is the path as it was sent.
pub fn resolve(raw: []const u8, decoded: []const u8, route: []const u8) ?FilePath {
    if (has_encoded_slash(raw)) return null;
    // The route itself, without a slash, is a directory that was asked for as a file.
    if (decoded.len == route.len) return .{ .path = "", .is_directory = false };
    const rest = decoded[route.len + 1 ..];
    if (rest.len == 0) return .{ .path = "", .is_directory = true };
    const is_directory = rest[rest.len - 1] == '/';
    const path = if (is_directory) rest[0 .. rest.len - 1] else rest;
    var segments = std.mem.splitScalar(u8, path, '/');
    while (segments.next()) |segment| {
        // ".", "..", and names that are hidden for a reason.
        if (segment.len == 0 or segment[0] == '.') return null;
    }
    for (path) |byte| if (byte == 0 or byte == '\\') return null;
    return .{ .path = path, .is_directory = is_directory };
}

/// Decoded it would be a slash that the client did not mean as one.
fn has_encoded_slash(raw: []const u8) bool {
    var rest = raw;
    while (std.mem.indexOfScalar(u8, rest, '%')) |at| {
        const escape = rest[at + 1 ..];
        if (escape.len >= 2 and escape[0] == '2' and (escape[1] | 0x20) == 'f') return true;
        rest = escape;
    }
    return false;
}

const testing = std.testing;

fn expect(route: []const u8, raw: []const u8, expected: ?FilePath) !void {
    errdefer std.debug.print("{s} below {s}\n", .{ raw, route });
    var storage: [path_bytes_max]u8 = undefined;
    const decoded = decode(&storage, raw).?;
    try testing.expect(is_below(decoded, route));
    const found = resolve(raw, decoded, route);
    if (expected) |wanted| {
        try testing.expectEqualStrings(wanted.path, found.?.path);
        try testing.expectEqual(wanted.is_directory, found.?.is_directory);
    } else {
        try testing.expectEqual(null, found);
    }
}

test "files and directories below a route" {
    try expect("/static", "/static/a.css", .{ .path = "a.css", .is_directory = false });
    try expect("/static", "/static/a/b.css", .{ .path = "a/b.css", .is_directory = false });
    try expect("/static", "/static/a/", .{ .path = "a", .is_directory = true });
    try expect("/static", "/static/", .{ .path = "", .is_directory = true });
    try expect("/static", "/static", .{ .path = "", .is_directory = false });
    try expect("/static", "/st%61tic/%61%20b", .{ .path = "a b", .is_directory = false });
    try expect("/static", "/static/%c3%a9", .{ .path = "\xc3\xa9", .is_directory = false });
    try expect("/static", "/static/a%2541", .{ .path = "a%41", .is_directory = false });
    try expect("", "/a", .{ .path = "a", .is_directory = false });
    try expect("", "/", .{ .path = "", .is_directory = true });
    try expect("", "", .{ .path = "", .is_directory = true });
    try expect("/a/b", "/a/b/c..d/e.", .{ .path = "c..d/e.", .is_directory = false });
    try expect("/a/.b", "/a/.b/c", .{ .path = "c", .is_directory = false });
}

test "what is refused" {
    inline for (.{
        "/s/..",        "/s/../a",     "/s/a/../../b",   "/s/.",          "/s/./a",
        "/s/%2e%2e/a",  "/s/.%2E/a",   "/s/%2e",         "/s/a/%2e%2e",   "/s/..%2fa",
        "/s/a%2fb",     "/s/a%2Fb",    "/s%2fa/b",       "/s/%2f",        "/s/a%00",
        "/s/%00",       "/s/a%00.css", "/s/a\\b",        "/s/..\\a",      "/s/a%5cb",
        "/s//a",        "/s/a//b",     "/s//",           "/s/a//",        "/s/.git/config",
        "/s/.htaccess", "/s/a/.env",   "/s/%2ehtaccess", "/s/%2e%2e%2fa", "/s/.../a",
    }) |raw| {
        try expect("/s", raw, null);
    }
    try expect("", "//evil.example/a", null);
    try expect("", "/%2fevil.example", null);
    try expect("", "/\\evil.example", null);
}

test "a route ends where a segment does" {
    try testing.expect(is_below("/static", "/static"));
    try testing.expect(is_below("/static/", "/static"));
    try testing.expect(!is_below("/statics", "/static"));
    try testing.expect(!is_below("/static.css", "/static"));
    try testing.expect(!is_below("/stati", "/static"));
    try testing.expect(!is_below("/Static/a", "/static"));
    try testing.expect(is_below("/anything", ""));
}

test "a path that is too long" {
    var storage: [path_bytes_max]u8 = undefined;
    try testing.expect(decode(&storage, "/" ++ "a" ** (path_bytes_max - 1)) != null);
    try testing.expectEqual(null, decode(&storage, "/" ++ "a" ** path_bytes_max));
    try testing.expectEqual(null, decode(&storage, "/%41" ++ "a" ** path_bytes_max));
}

test "whatever is asked for, no segment leads upward" {
    var random = std.Random.DefaultPrng.init(0x3986_5_2_4);
    const pieces = [_][]const u8{
        "..", ".", "/", "%2e", "%2f", "%", "a", "\\", "%5c", "%00", "%25", "2e", "2f", "b",
    };
    for (0..50_000) |_| {
        var raw: [80]u8 = undefined;
        var length: usize = 1;
        raw[0] = '/';
        for (0..random.random().uintLessThan(usize, 12)) |_| {
            const piece = pieces[random.random().uintLessThan(usize, pieces.len)];
            @memcpy(raw[length..][0..piece.len], piece);
            length += piece.len;
        }
        var storage: [path_bytes_max]u8 = undefined;
        const decoded = decode(&storage, raw[0..length]).?;
        const found = resolve(raw[0..length], decoded, "") orelse continue;
        try testing.expect(!std.mem.startsWith(u8, found.path, "/"));
        try testing.expect(std.mem.indexOfAny(u8, found.path, "\\\x00") == null);
        var segments = std.mem.splitScalar(u8, found.path, '/');
        if (found.path.len > 0) while (segments.next()) |segment| {
            try testing.expect(segment.len > 0 and segment[0] != '.');
        };
    }
}
