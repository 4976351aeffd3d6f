//! Build steps of the fuzz targets: an object each for libFuzzer (`zig build fuzz-TARGET`), their
//! corpora as tests of the core, and the program that the differential tests ask.
//!
//! Data: the build's. Thread: the build's. GIL: not needed.

const std = @import("std");

/// As in targets.zig, which a build script cannot import.
const targets = [_][]const u8{
    "request_head", "framing", "chunked", "connection", "proxy_header", "forwarded",
};

pub const Options = struct {
    target: std.Build.ResolvedTarget,
    core_options: *std.Build.Step.Options,
    /// The step that runs the core's tests, and which of them.
    tests: *std.Build.Step,
    filter: ?[]const u8,
};

pub fn add(b: *std.Build, options: Options) void {
    for (targets) |name| {
        const object = b.addObject(.{
            .name = b.fmt("fuzz-{s}", .{name}),
            .root_module = module(b, options, "libfuzzer.zig", .ReleaseSafe, name, true),
            .use_llvm = true,
        });
        const file = b.addInstallFile(object.getEmittedBin(), b.fmt("fuzz/{s}.o", .{name}));
        const about = b.fmt("Build the fuzz target {s} for libFuzzer", .{name});
        b.step(b.fmt("fuzz-{s}", .{name}), about).dependOn(&file.step);
    }
    const replay = b.addTest(.{
        .name = "replay",
        .root_module = module(b, options, "replay.zig", .Debug, "", false),
        .filters = if (options.filter) |filter| b.dupeStrings(&.{filter}) else &.{},
    });
    const run = b.addRunArtifact(replay);
    for (targets) |name| run.addFileInput(b.path(b.fmt("fuzz/corpus/{s}.txt", .{name})));
    options.tests.dependOn(&run.step);

    const verdict = b.addExecutable(.{
        .name = "verdict",
        .root_module = module(b, options, "verdict.zig", .Debug, "", false),
    });
    const install = b.addInstallArtifact(verdict, .{});
    b.step("verdict", "Build the program that tells how bytes are read").dependOn(&install.step);
}

fn module(
    b: *std.Build,
    options: Options,
    root: []const u8,
    optimize: std.builtin.OptimizeMode,
    target_name: []const u8,
    fuzz: bool,
) *std.Build.Module {
    const core = b.createModule(.{
        .root_source_file = b.path("src/core/core.zig"),
        .target = options.target,
        .optimize = optimize,
        .link_libc = true,
        .fuzz = fuzz,
        // Its function is in Zig's runtime, which would be instrumented, too.
        .stack_check = if (fuzz) false else null,
    });
    core.addOptions("build_options", options.core_options);
    const fuzz_options = b.addOptions();
    fuzz_options.addOption([]const u8, "target", target_name);
    fuzz_options.addOption([]const u8, "corpus", b.pathFromRoot("fuzz/corpus"));
    const made = b.createModule(.{
        .root_source_file = b.path(b.pathJoin(&.{ "fuzz", root })),
        .target = options.target,
        .optimize = optimize,
        .link_libc = true,
        .fuzz = fuzz,
        .stack_check = if (fuzz) false else null,
    });
    made.addImport("core", core);
    made.addOptions("fuzz_options", fuzz_options);
    return made;
}
