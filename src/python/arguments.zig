//! Arguments of our functions, given in order or by name, as a function in Python takes them.
//!
//! For METH_FASTCALL | METH_KEYWORDS and for vectorcall (PEP 590), whose caller holds a reference
//! to each argument until the function returns. GIL held.

const std = @import("std");
const capi = @import("capi.zig");
const Object = capi.Object;

pub const Signature = struct {
    function: []const u8,
    parameters: []const [:0]const u8,
    /// How many of them have no default.
    required: usize,
};

/// The arguments by parameter; null for one that was left out. Borrowed from the caller.
pub fn bind(
    comptime signature: Signature,
    values: [*]const *Object,
    count: usize,
    names: ?*Object,
) capi.Error![signature.parameters.len]?*Object {
    const most = signature.parameters.len;
    var bound: [most]?*Object = @splat(null);
    if (count > most) return raise_count(signature, count);
    for (values[0..count], bound[0..count]) |value, *slot| slot.* = value;
    if (names) |tuple| try bind_named(signature, values + count, tuple, &bound);
    inline for (0..signature.required) |index| {
        if (bound[index] == null) return capi.raise(
            capi.PyExc_TypeError,
            signature.function ++ "() is missing the argument '" ++
                signature.parameters[index] ++ "'",
        );
    }
    return bound;
}

fn bind_named(
    comptime signature: Signature,
    values: [*]const *Object,
    names: *Object,
    bound: *[signature.parameters.len]?*Object,
) capi.Error!void {
    const count: usize = @intCast(@max(0, capi.PyTuple_Size(names)));
    for (values[0..count], 0..) |value, index| {
        const name = capi.PyTuple_GetItem(names, @intCast(index)) orelse return error.Raised;
        const slot = inline for (signature.parameters, bound) |parameter, *slot| {
            if (capi.PyUnicode_CompareWithASCIIString(name, parameter) == 0) break slot;
        } else return raise_named(
            signature.function ++ "() got an unexpected keyword argument '%U'",
            name,
        );
        if (slot.* != null) return raise_named(
            signature.function ++ "() got multiple values for argument '%U'",
            name,
        );
        slot.* = value;
    }
}

fn raise_named(format: [*:0]const u8, name: *Object) capi.Error {
    _ = capi.PyErr_Format(capi.PyExc_TypeError, format, name);
    return error.Raised;
}

fn raise_count(comptime signature: Signature, given: usize) capi.Error {
    const format = std.fmt.comptimePrint(
        "{s}() takes at most {d} positional arguments but %zu were given",
        .{ signature.function, signature.parameters.len },
    );
    _ = capi.PyErr_Format(capi.PyExc_TypeError, format, given);
    return error.Raised;
}
