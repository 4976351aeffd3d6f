//! The media type of a file by the end of its name, and whether its contents are worth compressing.
//!
//! The types are IANA's where it has one, else those that browsers and other servers use;
//! tests/test_media_types.py compares them with Python's mimetypes. Data: a table made at compile
//! time. Any thread; GIL: not needed.

const std = @import("std");

const office = "application/vnd.openxmlformats-officedocument.";

/// By extension, which is in lower case; in order.
const entries = [_]struct { []const u8, []const u8 }{
    .{ "3g2", "video/3gpp2" },
    .{ "3gp", "video/3gpp" },
    .{ "7z", "application/x-7z-compressed" },
    .{ "aac", "audio/aac" },
    .{ "ai", "application/postscript" },
    .{ "aif", "audio/aiff" },
    .{ "aiff", "audio/aiff" },
    .{ "apk", "application/vnd.android.package-archive" },
    .{ "apng", "image/apng" },
    .{ "appcache", "text/cache-manifest" },
    .{ "asc", "text/plain" },
    .{ "atom", "application/atom+xml" },
    .{ "avi", "video/x-msvideo" },
    .{ "avif", "image/avif" },
    .{ "bat", "text/plain" },
    .{ "bin", "application/octet-stream" },
    .{ "bmp", "image/bmp" },
    .{ "br", "application/octet-stream" },
    .{ "bz2", "application/x-bzip2" },
    .{ "c", "text/plain" },
    .{ "cbz", "application/vnd.comicbook+zip" },
    .{ "cfg", "text/plain" },
    .{ "conf", "text/plain" },
    .{ "cpp", "text/plain" },
    .{ "crl", "application/pkix-crl" },
    .{ "crt", "application/x-x509-ca-cert" },
    .{ "cs", "text/plain" },
    .{ "css", "text/css" },
    .{ "csv", "text/csv" },
    .{ "cur", "image/vnd.microsoft.icon" },
    .{ "deb", "application/vnd.debian.binary-package" },
    .{ "der", "application/x-x509-ca-cert" },
    .{ "diff", "text/x-diff" },
    .{ "dll", "application/octet-stream" },
    .{ "dmg", "application/octet-stream" },
    .{ "doc", "application/msword" },
    .{ "docx", office ++ "wordprocessingml.document" },
    .{ "dot", "application/msword" },
    .{ "eml", "message/rfc822" },
    .{ "eot", "application/vnd.ms-fontobject" },
    .{ "eps", "application/postscript" },
    .{ "epub", "application/epub+zip" },
    .{ "exe", "application/octet-stream" },
    .{ "flac", "audio/flac" },
    .{ "flv", "video/x-flv" },
    .{ "geojson", "application/geo+json" },
    .{ "gif", "image/gif" },
    .{ "glb", "model/gltf-binary" },
    .{ "gltf", "model/gltf+json" },
    .{ "gpx", "application/gpx+xml" },
    .{ "gz", "application/gzip" },
    .{ "h", "text/plain" },
    .{ "h5", "application/x-hdf5" },
    .{ "heic", "image/heic" },
    .{ "heif", "image/heif" },
    .{ "htm", "text/html" },
    .{ "html", "text/html" },
    .{ "ico", "image/vnd.microsoft.icon" },
    .{ "ics", "text/calendar" },
    .{ "img", "application/octet-stream" },
    .{ "ini", "text/plain" },
    .{ "ipynb", "application/x-ipynb+json" },
    .{ "iso", "application/octet-stream" },
    .{ "jar", "application/java-archive" },
    .{ "java", "text/plain" },
    .{ "jpe", "image/jpeg" },
    .{ "jpeg", "image/jpeg" },
    .{ "jpg", "image/jpeg" },
    .{ "js", "text/javascript" },
    .{ "json", "application/json" },
    .{ "json5", "application/json5" },
    .{ "jsonl", "application/jsonl" },
    .{ "jsonld", "application/ld+json" },
    .{ "jxl", "image/jxl" },
    .{ "kml", "application/vnd.google-earth.kml+xml" },
    .{ "kmz", "application/vnd.google-earth.kmz" },
    .{ "less", "text/plain" },
    .{ "log", "text/plain" },
    .{ "lz4", "application/x-lz4" },
    .{ "m1v", "video/mpeg" },
    .{ "m3u", "application/vnd.apple.mpegurl" },
    .{ "m3u8", "application/vnd.apple.mpegurl" },
    .{ "m4a", "audio/mp4" },
    .{ "m4v", "video/mp4" },
    .{ "map", "application/json" },
    .{ "markdown", "text/markdown" },
    .{ "md", "text/markdown" },
    .{ "mht", "message/rfc822" },
    .{ "mhtml", "message/rfc822" },
    .{ "mid", "audio/midi" },
    .{ "midi", "audio/midi" },
    .{ "mjs", "text/javascript" },
    .{ "mka", "audio/x-matroska" },
    .{ "mkv", "video/x-matroska" },
    .{ "mov", "video/quicktime" },
    .{ "mp2", "audio/mpeg" },
    .{ "mp3", "audio/mpeg" },
    .{ "mp4", "video/mp4" },
    .{ "mpd", "application/dash+xml" },
    .{ "mpe", "video/mpeg" },
    .{ "mpeg", "video/mpeg" },
    .{ "mpg", "video/mpeg" },
    .{ "msi", "application/octet-stream" },
    .{ "nc", "application/x-netcdf" },
    .{ "nq", "application/n-quads" },
    .{ "nt", "application/n-triples" },
    .{ "obj", "model/obj" },
    .{ "odg", "application/vnd.oasis.opendocument.graphics" },
    .{ "odp", "application/vnd.oasis.opendocument.presentation" },
    .{ "ods", "application/vnd.oasis.opendocument.spreadsheet" },
    .{ "odt", "application/vnd.oasis.opendocument.text" },
    .{ "oga", "audio/ogg" },
    .{ "ogg", "audio/ogg" },
    .{ "ogv", "video/ogg" },
    .{ "opus", "audio/opus" },
    .{ "otf", "font/otf" },
    .{ "p12", "application/x-pkcs12" },
    .{ "p7c", "application/pkcs7-mime" },
    .{ "parquet", "application/vnd.apache.parquet" },
    .{ "patch", "text/x-diff" },
    .{ "pdf", "application/pdf" },
    .{ "pem", "application/x-pem-file" },
    .{ "pfx", "application/x-pkcs12" },
    .{ "pgm", "image/x-portable-graymap" },
    .{ "php", "text/plain" },
    .{ "pl", "text/plain" },
    .{ "png", "image/png" },
    .{ "pnm", "image/x-portable-anymap" },
    .{ "ppm", "image/x-portable-pixmap" },
    .{ "ppt", "application/vnd.ms-powerpoint" },
    .{ "pptx", office ++ "presentationml.presentation" },
    .{ "ps", "application/postscript" },
    .{ "py", "text/x-python" },
    .{ "pyc", "application/x-python-code" },
    .{ "qt", "video/quicktime" },
    .{ "rar", "application/vnd.rar" },
    .{ "rb", "text/plain" },
    .{ "rdf", "application/rdf+xml" },
    .{ "rpm", "application/x-rpm" },
    .{ "rs", "text/plain" },
    .{ "rss", "application/rss+xml" },
    .{ "rst", "text/x-rst" },
    .{ "rtf", "application/rtf" },
    .{ "scss", "text/plain" },
    .{ "sh", "application/x-sh" },
    .{ "so", "application/octet-stream" },
    .{ "sql", "application/sql" },
    .{ "srt", "text/plain" },
    .{ "stl", "model/stl" },
    .{ "svg", "image/svg+xml" },
    .{ "swf", "application/x-shockwave-flash" },
    .{ "tar", "application/x-tar" },
    .{ "tcl", "application/x-tcl" },
    .{ "tex", "application/x-tex" },
    .{ "tgz", "application/gzip" },
    .{ "tif", "image/tiff" },
    .{ "tiff", "image/tiff" },
    .{ "toml", "application/toml" },
    .{ "topojson", "application/json" },
    .{ "trig", "application/trig" },
    .{ "ts", "video/mp2t" },
    .{ "tsv", "text/tab-separated-values" },
    .{ "ttc", "font/collection" },
    .{ "ttf", "font/ttf" },
    .{ "ttl", "text/turtle" },
    .{ "txt", "text/plain" },
    .{ "usdz", "model/vnd.usdz+zip" },
    .{ "vcf", "text/vcard" },
    .{ "vtt", "text/vtt" },
    .{ "wasm", "application/wasm" },
    .{ "wav", "audio/wav" },
    .{ "weba", "audio/webm" },
    .{ "webm", "video/webm" },
    .{ "webmanifest", "application/manifest+json" },
    .{ "webp", "image/webp" },
    .{ "whl", "application/zip" },
    .{ "wmv", "video/x-ms-wmv" },
    .{ "woff", "font/woff" },
    .{ "woff2", "font/woff2" },
    .{ "xhtml", "application/xhtml+xml" },
    .{ "xls", "application/vnd.ms-excel" },
    .{ "xlsx", office ++ "spreadsheetml.sheet" },
    .{ "xml", "text/xml" },
    .{ "xsd", "text/xml" },
    .{ "xsl", "application/xml" },
    .{ "xslt", "application/xslt+xml" },
    .{ "xz", "application/x-xz" },
    .{ "yaml", "application/yaml" },
    .{ "yml", "application/yaml" },
    .{ "zip", "application/zip" },
    .{ "zst", "application/zstd" },
};

pub const MediaType = struct {
    /// As Content-Type has it.
    text: []const u8,
    /// A compressed sibling is looked for; what is compressed itself gains nothing.
    compressible: bool,
};

/// Of a file whose extension says nothing.
const unknown: MediaType = .{ .text = "application/octet-stream", .compressible = true };

const extension_bytes_max = blk: {
    var longest: usize = 0;
    for (entries) |entry| longest = @max(longest, entry[0].len);
    break :blk longest;
};

const types: [entries.len]MediaType = blk: {
    @setEvalBranchQuota(200_000);
    var found: [entries.len]MediaType = undefined;
    for (entries, &found) |entry, *media_type| {
        const text = entry[1];
        // Text of another encoding is rare, and undeclared it would be guessed at.
        media_type.* = .{
            .text = if (std.mem.startsWith(u8, text, "text/")) text ++ "; charset=utf-8" else text,
            .compressible = is_compressible(entry[0], text),
        };
    }
    break :blk found;
};

fn is_compressible(extension: []const u8, text: []const u8) bool {
    const has = struct {
        fn has(haystack: []const u8, needle: []const u8) bool {
            return std.mem.indexOf(u8, haystack, needle) != null;
        }
    }.has;
    for ([_][]const u8{ "bmp", "ico", "cur", "svg", "pgm", "ppm", "pnm" }) |raw| {
        if (std.mem.eql(u8, extension, raw)) return true;
    }
    for ([_][]const u8{ "image/", "audio/", "video/", "font/woff" }) |start| {
        if (std.mem.startsWith(u8, text, start)) return false;
    }
    for ([_][]const u8{
        "zip",     "7z",       "rar", "x-xz",         "zstd", "lz4", "openxmlformats",
        "android", "debian.b", "rpm", "opendocument", "kmz",  "pdf", "java-archive",
    }) |packed_name| if (has(text, packed_name)) return false;
    for ([_][]const u8{ "br", "bz2", "dmg", "iso", "img", "msi" }) |packed_name| {
        if (std.mem.eql(u8, extension, packed_name)) return false;
    }
    return true;
}

/// Of a file with this name, or path.
pub fn of(path: []const u8) MediaType {
    const name_start = if (std.mem.lastIndexOfScalar(u8, path, '/')) |slash| slash + 1 else 0;
    const dot = std.mem.lastIndexOfScalar(u8, path[name_start..], '.') orelse return unknown;
    const extension = path[name_start + dot + 1 ..];
    if (extension.len > extension_bytes_max) return unknown;
    var storage: [extension_bytes_max]u8 = undefined;
    const lower = std.ascii.lowerString(&storage, extension);
    const index = std.sort.binarySearch(
        struct { []const u8, []const u8 },
        &entries,
        lower,
        compare,
    ) orelse return unknown;
    return types[index];
}

fn compare(extension: []const u8, entry: struct { []const u8, []const u8 }) std.math.Order {
    return std.mem.order(u8, extension, entry[0]);
}

const testing = std.testing;

test "types by extension" {
    try testing.expectEqualStrings("text/html; charset=utf-8", of("index.html").text);
    try testing.expectEqualStrings("text/html; charset=utf-8", of("a/b.c/INDEX.HTML").text);
    try testing.expectEqualStrings("text/javascript; charset=utf-8", of("app.min.js").text);
    try testing.expectEqualStrings("application/json", of("x.json").text);
    try testing.expectEqualStrings("image/png", of("x.y.png").text);
    try testing.expectEqualStrings("application/gzip", of("x.tar.gz").text);
    for ([_][]const u8{ "", "name", "name.", "a.b/c", "x.nosuchtype", "x.\xff", "html" }) |path| {
        try testing.expectEqualStrings("application/octet-stream", of(path).text);
        try testing.expect(of(path).compressible);
    }
}

test "every extension finds its type" {
    for (entries, types) |entry, media_type| {
        var storage: [64]u8 = undefined;
        const path = try std.fmt.bufPrint(&storage, "a.{s}", .{entry[0]});
        try testing.expectEqualStrings(media_type.text, of(path).text);
    }
    for (entries[0 .. entries.len - 1], entries[1..]) |one, next| {
        try testing.expectEqual(.lt, std.mem.order(u8, one[0], next[0]));
    }
}

test "what is compressed itself" {
    // Images, sound, films, fonts, archives.
    for ([_][]const u8{
        "a.png", "a.jpg",  "a.webp", "a.mp4",  "a.woff2", "a.woff", "a.zip", "a.gz",
        "a.br",  "a.zst",  "a.pdf",  "a.docx", "a.odt",   "a.7z",   "a.mp3", "a.whl",
        "a.tgz", "a.epub", "a.jar",  "a.rar",
    }) |path| {
        errdefer std.debug.print("{s}\n", .{path});
        try testing.expect(!of(path).compressible);
    }
    for ([_][]const u8{
        "a.html",        "a.js",      "a.css", "a.json", "a.svg", "a.wasm", "a.ttf", "a.xml",
        "a.ico",         "a.tar",     "a.map", "a.txt",  "a.csv", "a.sql",  "a.bin", "a.bmp",
        "a.webmanifest", "a.geojson",
    }) |path| {
        errdefer std.debug.print("{s}\n", .{path});
        try testing.expect(of(path).compressible);
    }
}
