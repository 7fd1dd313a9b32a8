//! Between the stored inputs and the files that a fuzzer works with.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use portcullis_fuzz::corpus::{self, Input};
use portcullis_fuzz::{TARGETS, body};

const USAGE: &str =
    "usage: corpus unpack TARGET DIRECTORY   the stored inputs, a file each, and DIRECTORY.dict, words of the input's language
       corpus pack TARGET DIRECTORY     stores those files instead; what has a description stays
       corpus play TARGET FILE          plays one input
       corpus hex FILE                  prints the line that stores it
       corpus targets                   prints their names";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["unpack", target, directory] => unpack(target, Path::new(directory)),
        ["pack", target, directory] => pack(target, Path::new(directory)),
        ["play", target, file] => fs::read(file).map(|bytes| body(target)(&bytes)),
        ["hex", file] => fs::read(file).map(|bytes| println!("{}", corpus::hex(&bytes))),
        ["targets"] => {
            for (name, _) in TARGETS {
                println!("{name}");
            }
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corpus: {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn unpack(target: &str, directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    for (number, input) in corpus::load(target)?.iter().enumerate() {
        fs::write(directory.join(format!("stored-{number}")), &input.bytes)?;
    }
    fs::write(directory.with_extension("dict"), corpus::dictionary(target))
}

fn pack(target: &str, directory: &Path) -> std::io::Result<()> {
    let mut inputs: Vec<Input> = corpus::load(target)?.into_iter().filter(|input| !input.about.is_empty()).collect();
    let mut files: Vec<Vec<u8>> = fs::read_dir(directory)?.map(|file| fs::read(file?.path())).collect::<Result<_, _>>()?;
    files.retain(|bytes| inputs.iter().all(|input| input.bytes != *bytes));
    files.sort_by_key(|bytes| (bytes.len(), bytes.clone()));
    inputs.extend(files.into_iter().map(|bytes| Input { about: String::new(), bytes }));
    corpus::store(target, &inputs)
}
