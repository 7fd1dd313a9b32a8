//! The kernel's header as a C compiler reads it, for the tests of layouts and numbers.
//!
//! Knows how to compile a few lines of C, no layouts. Used by the unit tests of [`crate::device`] and [`crate::nic`]. Blind spot: the header
//! that is installed, which may be older than the kernel.

use std::{fmt::Write as _, fs, path::Path, process::Command};

/// Compares values of this crate with what a C compiler makes of expressions over linux/ethtool.h. Says loudly that it cannot, where
/// there is no compiler.
pub(crate) fn compare(expected: &[(&str, u64)]) {
    let name = format!("portcullis-header-{}-{:?}", std::process::id(), std::thread::current().id());
    let program = std::env::temp_dir().join(name);
    let source = program.with_extension("c");
    fs::write(&source, source_text(expected)).unwrap();
    let answer = compile_and_run(&source, &program);
    let _ = (fs::remove_file(&source), fs::remove_file(&program));
    let Some(answer) = answer else {
        println!("SKIPPED (needs cc): the layouts of linux/ethtool.h");
        return;
    };
    let values: Vec<u64> = answer.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(values.len(), expected.len());
    for ((expression, here), header) in expected.iter().zip(values) {
        assert_eq!(*here, header, "{expression}");
    }
}

fn source_text(expected: &[(&str, u64)]) -> String {
    let mut text = String::from("#include <stddef.h>\n#include <stdio.h>\n#include <linux/ethtool.h>\nint main(void) {\n");
    for (expression, _) in expected {
        writeln!(text, "printf(\"%llu\\n\", (unsigned long long)({expression}));").unwrap();
    }
    text + "return 0; }\n"
}

fn compile_and_run(source: &Path, program: &Path) -> Option<String> {
    let compiled = Command::new("cc").arg(source).arg("-o").arg(program).output().ok()?;
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Some(String::from_utf8(Command::new(program).output().unwrap().stdout).unwrap())
}
