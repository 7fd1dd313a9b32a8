//! Requests of the ethtool ioctl: a command's struct, and the array behind it whose length the struct announces.
//!
//! Knows linux/ethtool.h by offsets, in 32-bit words as all its structs are made of them (64-bit machines; a `__u64` is two). Used by
//! [`super::ethtool`] and by [`crate::nic`]. Invariant: the buffer is as long as the kernel's struct with all that it announces, and
//! what was announced cannot be changed. Sources: linux/ethtool.h, kernel net/ethtool/ioctl.c. Tests: here; a C compiler compares.

/// A command and the size of what it exchanges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    number: u32,
    /// **Units:** words.
    head: usize,
    array: Option<Array>,
}

/// The array behind a command's struct.
#[derive(Clone, Copy, Debug)]
struct Array {
    /// The word of the struct that says how many entries there are: one.
    announced_at: &'static [usize],
    /// Where the first entry is. **Units:** words.
    begins: usize,
    /// **Units:** words.
    entry: usize,
}

const fn plain(number: u32, head: usize) -> Command {
    Command { number, head, array: None }
}

const fn with_array(number: u32, head: usize, announced_at: &'static [usize], begins: usize, entry: usize) -> Command {
    Command { number, head, array: Some(Array { announced_at, begins, entry }) }
}

/// `struct ethtool_drvinfo`: texts of 32 bytes from word 1 on: driver, version, firmware, bus.
pub(crate) const GET_DRIVER: Command = plain(0x03, 49);
/// `struct ethtool_coalesce`.
pub(crate) const GET_COALESCING: Command = plain(0x0e, 23);
/// `struct ethtool_ringparam`: maxima of rx, mini, jumbo, tx, then the present ones in the same order.
pub(crate) const GET_RINGS: Command = plain(0x10, 9);
/// As [`GET_RINGS`].
pub(crate) const SET_RINGS: Command = plain(0x11, 9);
/// `struct ethtool_gstrings`: set, count, then names of 32 bytes. The kernel writes as many as the set has, whatever was announced.
const GET_NAMES: Command = with_array(0x1b, 3, &[2], 3, NAME_WORDS);
/// `struct ethtool_rxnfc` for the fields of the hash.
pub(crate) const GET_FIELDS: Command = plain(0x29, RULE_REQUEST);
/// As [`GET_FIELDS`].
pub(crate) const SET_FIELDS: Command = plain(0x2a, RULE_REQUEST);
/// `struct ethtool_rxnfc`, of which `data` is the number of receive rings.
pub(crate) const GET_RX_RINGS: Command = plain(0x2d, RULE_REQUEST);
/// `struct ethtool_rxnfc`, of which `rule_cnt` is the number of rules, `data` the size of the table and a flag.
pub(crate) const COUNT_RULES: Command = plain(0x2e, RULE_REQUEST);
/// `struct ethtool_rxnfc` with the locations of the rules behind it, which begin in the struct's padding.
pub(crate) const LIST_RULES: Command = with_array(0x30, RULE_REQUEST, &[RULE_COUNT], RULE_COUNT + 1, 1);
/// `struct ethtool_rxnfc` with the location of the rule.
pub(crate) const DELETE_RULE: Command = plain(0x31, RULE_REQUEST);
/// `struct ethtool_rxnfc` with the rule.
pub(crate) const INSERT_RULE: Command = plain(0x32, RULE_REQUEST);
/// `struct ethtool_sset_info`: reserved, a mask of 64 bits, then one count for each bit of it. Long enough for one.
const COUNT_NAMES: Command = plain(0x37, 5);
/// `struct ethtool_gfeatures`: size, then for each 32 features: available, requested, active, never changed.
pub(crate) const GET_FEATURES: Command = with_array(0x3a, 2, &[1], 2, 4);
/// `struct ethtool_sfeatures`: size, then for each 32 features: valid, requested.
pub(crate) const SET_FEATURES: Command = with_array(0x3b, 2, &[1], 2, 2);
/// `struct ethtool_channels`: maxima of rx, tx, other, combined, then the present ones in the same order.
pub(crate) const GET_CHANNELS: Command = plain(0x3c, 9);
/// As [`GET_CHANNELS`].
pub(crate) const SET_CHANNELS: Command = plain(0x3d, 9);

/// `ETHTOOL_GRSSH`: `struct ethtool_rxfh`, made by [`Request::rss`].
const GET_RSS: u32 = 0x46;
/// `ETHTOOL_SRSSH`.
const SET_RSS: u32 = 0x47;

/// `ETH_SS_FEATURES`.
const FEATURE_NAMES: u32 = 4;
/// `ETH_GSTRING_LEN`. **Units:** bytes.
const NAME_LEN: usize = 32;
const NAME_WORDS: usize = NAME_LEN / 4;

/// `struct ethtool_rxnfc`. **Units:** words, as the places that follow.
const RULE_REQUEST: usize = 48;
/// `flow_type`.
pub(crate) const FLOW_TYPE: usize = 1;
/// `data`.
pub(crate) const DATA: usize = 2;
/// `fs`, which is a `struct ethtool_rx_flow_spec`.
pub(crate) const RULE: usize = 4;
/// `fs.location`.
pub(crate) const LOCATION: usize = 44;
/// `rule_cnt`, which is `rss_context` too.
pub(crate) const RULE_COUNT: usize = 46;

/// `struct ethtool_rxfh`. **Units:** words, as the places that follow.
const RSS_REQUEST: usize = 6;
/// `indir_size`.
pub(crate) const TABLE_SIZE: usize = 2;
/// `key_size`. **Units** of the value: bytes.
pub(crate) const KEY_SIZE: usize = 3;
/// The four bytes `hfunc`, `input_xfrm` (reserved before Linux 6.8), two reserved.
pub(crate) const HASH: usize = 4;
/// `ETH_RXFH_INDIR_NO_CHANGE`.
const TABLE_STAYS: u32 = u32::MAX;

/// What a request about RSS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RssRequest {
    /// Reads the sizes and the function only.
    Sizes,
    /// Reads all; the sizes have to be the device's.
    Read {
        /// Entries.
        table: u32,
        /// Bytes.
        key: u32,
    },
    /// Sets the table, and a key when its length is not zero.
    Table {
        /// Entries.
        table: u32,
        /// Bytes.
        key: u32,
    },
    /// Leaves the table, and sets a key when its length is not zero.
    Key {
        /// Bytes.
        key: u32,
    },
    /// Sets the kernel's default table. Without a key: where kernels before 6.8 look for it depends on the table's size.
    DefaultTable,
}

/// A request, and after the call its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    words: Vec<u32>,
    /// Words that announce lengths, or say what they mean.
    fixed: &'static [usize],
}

impl Request {
    /// A request with nothing behind its struct.
    pub(crate) fn new(command: Command) -> Self {
        Self::announcing(command, 0)
    }

    /// A request with `entries` in the array behind its struct.
    pub(crate) fn announcing(command: Command, entries: usize) -> Self {
        let Some(array) = command.array else {
            assert_eq!(entries, 0, "the command has no array");
            return Self::zeroed(command.number, command.head, &[]);
        };
        let len = command.head.max(array.begins + entries * array.entry);
        let mut request = Self::zeroed(command.number, len, array.announced_at);
        request.words[array.announced_at[0]] = u32::try_from(entries).expect("an array in memory");
        request
    }

    /// Asks how many features the kernel knows. The answer is [`Self::features_counted`].
    pub(crate) fn count_features() -> Self {
        let mut request = Self::zeroed(COUNT_NAMES.number, COUNT_NAMES.head, &[2, 3]);
        request.words[2] = 1 << FEATURE_NAMES;
        request
    }

    /// The answer to [`Self::count_features`].
    pub(crate) fn features_counted(&self) -> usize {
        self.words[4] as usize
    }

    /// Asks for the names of the features. The answer is [`Self::names`]. `count` has to be the kernel's: it does not change.
    pub(crate) fn name_features(count: usize) -> Self {
        let mut request = Self::announcing(GET_NAMES, count);
        request.words[1] = FEATURE_NAMES;
        request.fixed = &[1, 2];
        request
    }

    /// The answer to [`Self::name_features`].
    pub(crate) fn names(&self) -> Vec<String> {
        (3..self.words.len()).step_by(NAME_WORDS).map(|word| self.text(word, NAME_LEN)).collect()
    }

    /// A request about RSS. **Shape** behind the struct: the table, one word an entry, then the key's bytes.
    pub(crate) fn rss(what: RssRequest) -> Self {
        let (number, table, key, announced) = match what {
            RssRequest::Sizes => (GET_RSS, 0, 0, 0),
            RssRequest::Read { table, key } => (GET_RSS, table, key, table),
            RssRequest::Table { table, key } => (SET_RSS, table, key, table),
            RssRequest::Key { key } => (SET_RSS, 0, key, TABLE_STAYS),
            RssRequest::DefaultTable => (SET_RSS, 0, 0, 0),
        };
        let behind = table as usize + (key as usize).div_ceil(4);
        let mut request = Self::zeroed(number, RSS_REQUEST + behind, &[TABLE_SIZE, KEY_SIZE]);
        request.words[TABLE_SIZE] = announced;
        request.words[KEY_SIZE] = key;
        request
    }

    fn zeroed(number: u32, len: usize, fixed: &'static [usize]) -> Self {
        let mut words = vec![0; len];
        words[0] = number;
        Self { words, fixed }
    }

    /// A word of the request or of the answer.
    pub(crate) fn get(&self, word: usize) -> u32 {
        self.words[word]
    }

    /// Sets a word. **Panics:** for the command and for lengths, which belong to the constructors.
    pub(crate) fn set(&mut self, word: usize, value: u32) {
        assert!(word != 0 && !self.fixed.contains(&word), "word {word} announces a length");
        self.words[word] = value;
    }

    /// The words of the array, or from any other place on.
    pub(crate) fn words_from(&self, word: usize) -> &[u32] {
        &self.words[word..]
    }

    /// The table behind a request about RSS.
    pub(crate) fn table(&self, entries: usize) -> &[u32] {
        &self.words[RSS_REQUEST..RSS_REQUEST + entries]
    }

    /// The key behind a table of that many entries.
    pub(crate) fn key(&self, entries: usize, bytes: usize) -> Vec<u8> {
        self.bytes(RSS_REQUEST + entries, bytes)
    }

    /// Fills what is behind a request about RSS.
    pub(crate) fn set_rss(&mut self, table: &[u32], key: &[u8]) {
        let behind = &mut self.words[RSS_REQUEST..];
        behind[..table.len()].copy_from_slice(table);
        for (word, bytes) in behind[table.len()..].iter_mut().zip(key.chunks(4)) {
            let mut padded = [0; 4];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u32::from_ne_bytes(padded);
        }
    }

    /// Bytes of the answer from a word on.
    pub(crate) fn bytes(&self, word: usize, len: usize) -> Vec<u8> {
        self.words[word..].iter().flat_map(|word| word.to_ne_bytes()).take(len).collect()
    }

    /// Writes whole words of bytes from a word on. **Panics:** as [`Self::set`].
    pub(crate) fn set_bytes(&mut self, word: usize, bytes: &[u8]) {
        for (at, chunk) in bytes.chunks_exact(4).enumerate() {
            self.set(word + at, u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
        }
    }

    /// A text of the answer: up to its first zero.
    pub(crate) fn text(&self, word: usize, len: usize) -> String {
        let bytes: Vec<u8> = self.bytes(word, len).into_iter().take_while(|&byte| byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The `__u64` at a word.
    pub(crate) fn wide(&self, word: usize) -> u64 {
        let bytes = self.bytes(word, 8);
        u64::from_ne_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// Sets the `__u64` at a word.
    pub(crate) fn set_wide(&mut self, word: usize, value: u64) {
        self.set_bytes(word, &value.to_ne_bytes());
    }

    /// The buffer, for the kernel.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u32 {
        self.words.as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header;

    #[test]
    fn the_structs_are_the_headers() {
        let words = |command: Command| command.head as u64 * 4;
        let at = |word: usize| word as u64 * 4;
        let begins = |command: Command| at(command.array.expect("an array").begins);
        let announced = |command: Command| at(command.array.expect("an array").announced_at[0]);
        header::compare(&[
            ("sizeof(struct ethtool_drvinfo)", words(GET_DRIVER)),
            ("sizeof(struct ethtool_coalesce)", words(GET_COALESCING)),
            ("sizeof(struct ethtool_ringparam)", words(GET_RINGS)),
            ("sizeof(struct ethtool_channels)", words(GET_CHANNELS)),
            ("sizeof(struct ethtool_rxnfc)", words(INSERT_RULE)),
            ("sizeof(struct ethtool_sset_info) + 4", words(COUNT_NAMES)),
            ("sizeof(struct ethtool_rxfh)", at(RSS_REQUEST)),
            ("sizeof(struct ethtool_get_features_block)", at(GET_FEATURES.array.expect("an array").entry)),
            ("sizeof(struct ethtool_set_features_block)", at(SET_FEATURES.array.expect("an array").entry)),
            ("offsetof(struct ethtool_gfeatures, size)", announced(GET_FEATURES)),
            ("offsetof(struct ethtool_gfeatures, features)", begins(GET_FEATURES)),
            ("offsetof(struct ethtool_sfeatures, size)", announced(SET_FEATURES)),
            ("offsetof(struct ethtool_sfeatures, features)", begins(SET_FEATURES)),
            ("offsetof(struct ethtool_gstrings, len)", announced(GET_NAMES)),
            ("offsetof(struct ethtool_gstrings, data)", begins(GET_NAMES)),
            ("ETH_GSTRING_LEN", NAME_LEN as u64),
            ("ETH_SS_FEATURES", FEATURE_NAMES.into()),
            ("offsetof(struct ethtool_sset_info, sset_mask)", at(2)),
            ("offsetof(struct ethtool_sset_info, data)", at(4)),
            ("offsetof(struct ethtool_rxnfc, flow_type)", at(FLOW_TYPE)),
            ("offsetof(struct ethtool_rxnfc, data)", at(DATA)),
            ("offsetof(struct ethtool_rxnfc, fs)", at(RULE)),
            ("offsetof(struct ethtool_rxnfc, fs.location)", at(LOCATION)),
            ("offsetof(struct ethtool_rxnfc, rule_cnt)", announced(LIST_RULES)),
            ("offsetof(struct ethtool_rxnfc, rule_locs)", begins(LIST_RULES)),
            ("offsetof(struct ethtool_rxfh, indir_size)", at(TABLE_SIZE)),
            ("offsetof(struct ethtool_rxfh, key_size)", at(KEY_SIZE)),
            ("offsetof(struct ethtool_rxfh, hfunc)", at(HASH)),
            ("offsetof(struct ethtool_rxfh, rss_config)", at(RSS_REQUEST)),
            ("ETH_RXFH_INDIR_NO_CHANGE", TABLE_STAYS.into()),
        ]);
    }

    #[test]
    fn the_commands_are_the_headers() {
        let number = |command: Command| u64::from(command.number);
        header::compare(&[
            ("ETHTOOL_GDRVINFO", number(GET_DRIVER)),
            ("ETHTOOL_GCOALESCE", number(GET_COALESCING)),
            ("ETHTOOL_GRINGPARAM", number(GET_RINGS)),
            ("ETHTOOL_SRINGPARAM", number(SET_RINGS)),
            ("ETHTOOL_GSTRINGS", number(GET_NAMES)),
            ("ETHTOOL_GRXFH", number(GET_FIELDS)),
            ("ETHTOOL_SRXFH", number(SET_FIELDS)),
            ("ETHTOOL_GRXRINGS", number(GET_RX_RINGS)),
            ("ETHTOOL_GRXCLSRLCNT", number(COUNT_RULES)),
            ("ETHTOOL_GRXCLSRLALL", number(LIST_RULES)),
            ("ETHTOOL_SRXCLSRLDEL", number(DELETE_RULE)),
            ("ETHTOOL_SRXCLSRLINS", number(INSERT_RULE)),
            ("ETHTOOL_GSSET_INFO", number(COUNT_NAMES)),
            ("ETHTOOL_GFEATURES", number(GET_FEATURES)),
            ("ETHTOOL_SFEATURES", number(SET_FEATURES)),
            ("ETHTOOL_GCHANNELS", number(GET_CHANNELS)),
            ("ETHTOOL_SCHANNELS", number(SET_CHANNELS)),
            ("ETHTOOL_GRSSH", GET_RSS.into()),
            ("ETHTOOL_SRSSH", SET_RSS.into()),
        ]);
    }

    #[test]
    fn a_request_is_as_long_as_what_it_announces() {
        assert_eq!(Request::new(GET_CHANNELS).words.len(), 9);
        assert_eq!(Request::announcing(GET_FEATURES, 3).words.len(), 2 + 3 * 4);
        assert_eq!(Request::name_features(2).words.len(), 3 + 2 * 8);
        assert_eq!(Request::announcing(LIST_RULES, 0).words.len(), 48, "never shorter than the struct");
        assert_eq!(Request::announcing(LIST_RULES, 5).words.len(), 47 + 5);
        assert_eq!(Request::rss(RssRequest::Read { table: 128, key: 40 }).words.len(), 6 + 128 + 10);
        assert_eq!(Request::rss(RssRequest::Key { key: 52 }).words.len(), 6 + 13);
        assert_eq!(Request::rss(RssRequest::Key { key: 41 }).words.len(), 6 + 11);
    }

    #[test]
    fn what_a_request_announces_cannot_be_changed() {
        let refused = |mut request: Request, word| std::panic::catch_unwind(move || request.set(word, 9)).is_err();
        assert!(refused(Request::announcing(LIST_RULES, 5), RULE_COUNT));
        assert!(refused(Request::rss(RssRequest::Sizes), TABLE_SIZE));
        assert!(refused(Request::rss(RssRequest::Sizes), KEY_SIZE));
        assert!(refused(Request::count_features(), 2));
        assert!(refused(Request::name_features(1), 1));
        assert!(refused(Request::new(GET_CHANNELS), 0));
        assert!(!refused(Request::new(SET_CHANNELS), 8));
    }

    #[test]
    fn table_and_key_lie_behind_each_other() {
        let key: Vec<u8> = (1..=41).collect();
        let mut request = Request::rss(RssRequest::Table { table: 4, key: 41 });
        request.set_rss(&[3, 2, 1, 0], &key);
        assert_eq!(request.table(4), [3, 2, 1, 0]);
        assert_eq!(request.key(4, 41), key);
        assert_eq!(request.bytes(RSS_REQUEST + 4, 4), [1, 2, 3, 4]);
    }
}
