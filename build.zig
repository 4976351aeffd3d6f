//! Builds the extension module `_core` and the tests of src/core.
//!
//! `zig build test` needs no Python: src/core knows nothing of it. The extension needs the headers
//! of a CPython and the sources of ziggy-pydust; scripts/build and the wheel's build hook pass both
//! as options, and so nothing here runs an interpreter.

const std = @import("std");
const builtin = @import("builtin");
const fuzz = @import("fuzz/steps.zig");

comptime {
    const wanted = "0.15.2";
    if (!std.mem.eql(u8, builtin.zig_version_string, wanted)) {
        @compileError("serve-zig builds with Zig " ++ wanted ++ ", found " ++
            builtin.zig_version_string);
    }
}

/// The stable ABI that the extension promises: CPython 3.11 and everything newer.
const limited_api_version = "0x030b0000";
const limited_api_hexversion = "0x030b00f0";

pub fn build(b: *std.Build) void {
    // Wheels run on other machines than the one that built them, so the CPU is the baseline unless
    // `-Dcpu` says otherwise.
    const target = b.standardTargetOptions(.{ .default_target = .{ .cpu_model = .baseline } });
    const optimize = b.option(
        std.builtin.OptimizeMode,
        "optimize",
        "Of the extension; ReleaseSafe ships (default: ReleaseSafe)",
    ) orelse .ReleaseSafe;
    const tsan = b.option(bool, "tsan", "Run the core's tests under ThreadSanitizer") orelse false;
    const strip = b.option(bool, "strip", "Leave debug information out") orelse false;
    const test_filter = b.option([]const u8, "test-filter", "Run only the tests so named");
    const kqueue_library = b.option(
        []const u8,
        "libkqueue",
        "Folder of a libkqueue build: use the kqueue reactor on Linux, for tests",
    );

    const core_options = b.addOptions();
    core_options.addOption([]const u8, "version", version());
    core_options.addOption(bool, "libkqueue", kqueue_library != null);

    const tests = add_core_tests(b, .{
        .target = target,
        .tsan = tsan,
        .filter = test_filter,
        .options = core_options,
        .kqueue_library = kqueue_library,
    });
    fuzz.add(b, .{
        .target = target,
        .core_options = core_options,
        .tests = tests,
        .filter = test_filter,
    });

    const include = b.option([]const u8, "python-include", "Folder that holds Python.h");
    const pydust = b.option([]const u8, "pydust", "Folder that holds pydust.zig and ffi.h");
    if (include == null or pydust == null) {
        const missing = b.addFail("the extension needs -Dpython-include= and -Dpydust= " ++
            "(scripts/build passes both); `zig build test` needs neither");
        b.getInstallStep().dependOn(&missing.step);
        return;
    }

    const core = b.createModule(.{
        .root_source_file = b.path("src/core/core.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .strip = strip,
    });
    core.addOptions("build_options", core_options);
    if (kqueue_library) |folder| link_kqueue(core, folder);

    const extension = add_extension(b, .{
        .target = target,
        .optimize = optimize,
        .strip = strip,
        .include = include.?,
        .pydust = pydust.?,
        .core = core,
    });
    const install = b.addInstallFileWithDir(extension.getEmittedBin(), .lib, "_core.abi3.so");
    b.getInstallStep().dependOn(&install.step);
}

/// The version has one home, build.zig.zon; pyproject.toml reads it from there too.
fn version() []const u8 {
    return @import("build.zig.zon").version;
}

const CoreTests = struct {
    target: std.Build.ResolvedTarget,
    tsan: bool,
    filter: ?[]const u8,
    options: *std.Build.Step.Options,
    kqueue_library: ?[]const u8,
};

fn add_core_tests(b: *std.Build, options: CoreTests) *std.Build.Step {
    const module = b.createModule(.{
        .root_source_file = b.path("src/core/core.zig"),
        .target = options.target,
        .optimize = b.option(
            std.builtin.OptimizeMode,
            "test-optimize",
            "Of the core's tests (default: Debug)",
        ) orelse .Debug,
        .link_libc = true,
        .sanitize_thread = options.tsan,
    });
    module.addOptions("build_options", options.options);
    if (options.kqueue_library) |folder| link_kqueue(module, folder);
    const tests = b.addTest(.{
        .root_module = module,
        .test_runner = .{ .path = b.path("src/core/runner_fixture.zig"), .mode = .simple },
        .filters = if (options.filter) |filter| b.dupeStrings(&.{filter}) else &.{},
    });
    const run = b.addRunArtifact(tests);
    const step = b.step("test", "Run the core's tests");
    step.dependOn(&run.step);
    return step;
}

fn link_kqueue(module: *std.Build.Module, folder: []const u8) void {
    module.addLibraryPath(.{ .cwd_relative = folder });
    module.addRPath(.{ .cwd_relative = folder });
    module.linkSystemLibrary("kqueue", .{});
}

const Extension = struct {
    target: std.Build.ResolvedTarget,
    optimize: std.builtin.OptimizeMode,
    strip: bool,
    include: []const u8,
    pydust: []const u8,
    core: *std.Build.Module,
};

/// ziggy-pydust's own build step looks for its ffi.h inside our tree and fails; this does what that
/// step does, with the paths that it was given.
fn add_extension(b: *std.Build, options: Extension) *std.Build.Step.Compile {
    const ffi = b.addTranslateC(.{
        .root_source_file = .{ .cwd_relative = b.pathJoin(&.{ options.pydust, "ffi.h" }) },
        .target = options.target,
        .optimize = options.optimize,
    });
    ffi.addIncludePath(.{ .cwd_relative = options.include });
    ffi.defineCMacro("Py_LIMITED_API", limited_api_version);

    const pyconf = b.addOptions();
    pyconf.addOption([:0]const u8, "module_name", "serve_zig._core");
    pyconf.addOption(bool, "limited_api", true);
    pyconf.addOption([]const u8, "hexversion", limited_api_hexversion);

    const ffi_module = ffi.createModule();
    const pydust = b.createModule(.{
        .root_source_file = .{ .cwd_relative = b.pathJoin(&.{ options.pydust, "pydust.zig" }) },
        .target = options.target,
        .optimize = options.optimize,
        .link_libc = true,
        .strip = options.strip,
    });
    pydust.addOptions("pyconf", pyconf);
    pydust.addImport("ffi", ffi_module);

    const root = b.createModule(.{
        .root_source_file = b.path("src/lib.zig"),
        .target = options.target,
        .optimize = options.optimize,
        .link_libc = true,
        .strip = options.strip,
    });
    root.addImport("pydust", pydust);
    root.addImport("core", options.core);
    root.addOptions("pyconf", pyconf);

    const library = b.addLibrary(.{
        .name = "_core",
        .root_module = root,
        .linkage = .dynamic,
        // Zig's own backend, the default of Debug on x86-64, makes thread-local variables that a
        // loaded module cannot reach (0.15.2).
        .use_llvm = true,
        .use_lld = if (options.target.result.os.tag == .macos) null else true,
    });
    // The interpreter that imports the module provides the C API's symbols.
    library.linker_allow_shlib_undefined = true;
    return library;
}
