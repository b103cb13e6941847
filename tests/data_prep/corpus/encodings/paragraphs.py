# ruff: noqa: E501 - East Asian characters count double
"""A paragraph in each of 32 languages, written for these tests, and the encodings that it is tried in."""

import unicodedata

PARAGRAPHS = {
    "de": "Am Samstag fährt meine Großmutter früh auf den Markt, weil die Äpfel dort süßer und günstiger sind. Danach "
    "trinken wir in der Küche Kaffee, hören Musik und überlegen, was wir am Nachmittag kochen können.",
    "fr": "Hier soir, la sœur de Léa a préparé un gâteau où le goût du café se mêlait à celui des noisettes grillées. "
    "Les invités étaient ravis, même si le four avait un peu brûlé la croûte d'un côté.",
    "es": "Mañana iremos a la montaña con los niños, así que habrá que comprar pan, jamón y algún melocotón. ¿Quién "
    "llevará la cámara? El año pasado nadie sacó una sola fotografía del camino.",
    "pt": "O avô não gosta de viajar de avião, mas a estação de comboios fica tão longe que já não há solução. A minha "
    "irmã vai levá-lo até à fronteira e eu espero por ele amanhã de manhã.",
    "it": "Perché non andiamo più spesso in città? Il caffè della piazza è tranquillo, c'è sempre qualche novità, e la "
    "domenica suonano musica così bella che nessuno vorrebbe tornare a casa.",
    "nl": "Tijdens de vakantie reden we met z'n vieren naar zee. De kinderen bouwden een zandkasteel, één oom las de "
    "krant en niemand had een idee waar de geërfde parasol van oma gebleven was. Het café was al dicht.",
    "sv": "Förra året köpte vi en liten stuga vid sjön. På sommaren badar vi från bryggan, och när hösten kommer plockar "
    "barnen svamp i skogen medan farfar lagar båten på gården.",
    "da": "Om foråret cykler vi ofte langs åen og spiser rugbrød under de gamle træer. Når det regner, går vi på "
    "biblioteket, hvor min søster låner flere bøger, end hun når at læse.",
    "fi": "Eilen illalla lämmitimme saunan ja kävelimme sen jälkeen järven jäälle katsomaan tähtiä. Äiti oli keittänyt "
    "mustikkakeittoa, mutta pöydällä odotti myös tuoretta leipää ja vähän hunajaa.",
    "is": "Á veturna er dimmt í þorpinu en fólkið hittist í sundlauginni og ræðir veðrið. Bróðir minn á tvo hesta og "
    "þegar snjóar ekki of mikið förum við ríðandi út að fossinum.",
    "pl": "W sobotę rano pojechaliśmy na działkę, żeby zebrać ostatnie śliwki i gruszki. Babcia smażyła powidła przez "
    "cały dzień, a dzieci biegały wokół studni i goniły kota sąsiadów, aż wreszcie zasnęły ze zmęczenia.",
    "cs": "Když jsme přijeli na chalupu, střecha už byla zasněžená a v komíně hučel vítr. Děda zatopil v kamnech, "
    "uvařil čaj s medem a vyprávěl nám, jak kdysi jezdil do školy na lyžích přes celé údolí.",
    "sk": "Môj strýko chová včely na kopci za dedinou a každú jeseň nám prinesie niekoľko pohárov medu. Keď je teplo, "
    "sedíme pod čerešňou, počúvame vtáky a plánujeme, čo všetko ešte treba urobiť.",
    "hu": "A hétvégén kirándulni megyünk a hegyekbe, mert végre jó idő lesz. Az öcsém új hátizsákot kapott, a hűtőben "
    "már ott van a főtt tojás, és csak azt kell eldöntenünk, melyik ösvényen induljunk fölfelé.",
    "sl": "Zjutraj je bilo še megleno, potem pa je posijalo sonce in šli smo peš do jezera. Oče je kupil češnje, mama "
    "je že prej spekla žemlje, otroci pa so metali kamenčke v vodo in šteli odboje.",
    "hr": "Naša kuća stoji na kraju sela, između dviju starih šljiva. Ujutro čujemo zvono s crkve, a navečer žabe iz "
    "potoka. Kad dođe ljeto, svi rođaci dolaze ovamo i spavaju gdje god nađu mjesta.",
    "ro": "În fiecare toamnă mergem la bunici să culegem strugurii. Tata cară lăzile, mama spală borcanele, iar noi "
    "stăm sub nuc şi spargem nuci până când ni se înnegresc mâinile şi ne cheamă cineva la masă.",
    "lt": "Šeštadienį važiavome prie ežero, nors ryte dar lijo. Senelis užkūrė laužą, mes kepėme žuvį ir klausėmės, kaip "
    "girioje šaukia gegutė. Grįžome vėlai, pavargę, bet labai patenkinti šia diena.",
    "lv": "Vasarā mēs dzīvojam pie vecmāmiņas mazā mājiņā aiz meža. No rīta dzeram pienu, pēc tam lasām ķiršus un "
    "vācam sēnes, bet vakarā visi sēžam uz sliekšņa un skatāmies, kā riet saule.",
    "et": "Läksime pühapäeval rappa jalutama, sest öösel oli külmetanud ja laudtee ei olnud enam märg. Õde pildistas "
    "jäätunud õisi, mina sõin võileiba ja kuulasin, kuidas kusagil kaugel hüüdis sookurg.",
    "tr": "Dün akşam kardeşim bizi çaya çağırdı, ama yağmur öyle hızlı yağıyordu ki otobüs durağına kadar sırılsıklam "
    "olduk. Neyse ki içerisi sıcaktı; annem böreği fırından çıkarmış, herkes güle oynaya yiyordu.",
    "vi": "Sáng nay mẹ tôi ra chợ mua cá và rau tươi, còn bố ở nhà sửa lại chiếc xe đạp cũ. Buổi chiều trời mưa to, cả "
    "gia đình ngồi uống trà và kể cho nhau nghe những chuyện ngày xưa ở quê.",
    "ru": "Утром во дворе было тихо, только дворник подметал опавшие листья. Потом проснулись дети, захлопали двери, и "
    "кто-то на третьем этаже начал разучивать на пианино одну и ту же весёлую мелодию.",
    "uk": "Щонеділі ми їздимо до бабусі, яка живе біля річки. Вона пече пиріжки з вишнями, дід лагодить човен, а ми "
    "збираємо яблука в саду й слухаємо, як десь за городами співає їхня сусідка.",
    "bg": "Всяка есен баща ми бере гъби в планината над нашето село. Връща се чак по тъмно, с пълна кошница, и цяла "
    "вечер разказва къде е вървял, какво е видял и колко далече се чува реката.",
    "el": "Το καλοκαίρι κοιμόμαστε στην αυλή, γιατί μέσα στο σπίτι κάνει πολλή ζέστη. Η γιαγιά ποτίζει τα λουλούδια "
    "πριν βγει ο ήλιος και ύστερα μας φωνάζει για ψωμί με μέλι και φρέσκο τυρί.",
    "he": "בכל יום שישי אחרי הצהריים אנחנו נוסעים לסבתא ועוזרים לה לבשל את ארוחת הערב. הילדים משחקים בחצר, השכנים "
    "באים לברך, וסבא מספר שוב איך הגיע לעיר הזאת עם מזוודה אחת.",
    "ar": "في الصباح يذهب أخي إلى المدرسة سيرا على الأقدام لأن الطريق قصير والهواء لطيف. وبعد الظهر نجلس تحت شجرة الزيتون "
    "ونشرب الشاي مع الجيران ونتحدث عن أخبار القرية والمطر الذي تأخر.",
    "th": "เมื่อวานนี้ฉันกับน้องสาวไปเดินเล่นที่ตลาดริมแม่น้ำ เราซื้อขนมกับผลไม้มาฝากคุณยาย แล้วนั่งเรือกลับบ้านตอนเย็น อากาศเย็นสบายและมีลมพัดเบาๆ",
    "ja": "昨日は友達と一緒に川の近くの公園へ行きました。桜はもう散ってしまいましたが、風が気持ちよくて、ベンチでお弁当を食べながら"
    "昔の話をたくさんしました。帰りに小さな店でパンを買いました。",
    "zh_Hans": "昨天下午我和妹妹去河边散步,路上遇到了以前的老师。他说现在每天早上都打太极拳,身体比退休以前还要好。我们一起喝了茶,"
    "聊了很久,天黑了才回家。",
    "zh_Hant": "昨天下午我和妹妹去河邊散步,路上遇到了以前的老師。他說現在每天早上都打太極拳,身體比退休以前還要好。我們一起喝了茶,"
    "聊了很久,天黑了才回家。",
    "ko": "어제는 동생과 함께 강가를 걸었습니다. 바람이 조금 불었지만 날씨가 맑아서 기분이 좋았고, 돌아오는 길에 시장에 들러 과일과 떡을 "
    "사서 할머니 댁에 가져다 드렸습니다.",
}  # fmt: skip

WESTERN = ("cp1252", "iso8859_15", "mac_roman", "cp850")
CENTRAL = ("cp1250", "iso8859_2", "cp852")
CYRILLIC = ("cp1251", "koi8_u", "iso8859_5", "mac_cyrillic")
ENCODINGS = {
    **dict.fromkeys(("de", "fr", "es", "pt", "it", "nl", "sv", "da", "fi"), WESTERN),
    "is": ("cp1252", "cp861", "mac_iceland"),
    **dict.fromkeys(("pl", "cs", "sk", "hu", "sl", "hr", "ro"), CENTRAL),
    "lt": ("cp1257", "iso8859_13", "cp775"),
    "lv": ("cp1257", "iso8859_13", "cp775"),
    "et": ("cp1257", "iso8859_4"),
    "tr": ("cp1254", "cp857", "mac_turkish"),
    "vi": ("cp1258",),
    "ru": ("cp1251", "koi8_r", "iso8859_5", "mac_cyrillic", "cp866", "cp855", "utf_7", "utf_16_le"),
    "uk": (*CYRILLIC, "cp1125"),
    "bg": ("cp1251", "iso8859_5", "cp866"),
    "el": ("cp1253", "iso8859_7", "cp737", "mac_greek"),
    "he": ("cp1255", "iso8859_8", "cp862"),
    "ar": ("cp1256", "iso8859_6", "cp720"),
    "th": ("cp874",),
    "ja": ("cp932", "euc_jp", "iso2022_jp", "utf_16_be", "utf_16_le"),
    "zh_Hans": ("gb18030", "hz", "utf_16_le", "utf_16_be"),
    "zh_Hant": ("big5", "utf_16_be"),
    "ko": ("cp949", "johab", "iso2022_kr", "utf_16_le"),
}


def encoded(language: str, encoding: str) -> bytes | None:
    """The paragraph in an encoding; None where that has not all of its letters."""
    text = PARAGRAPHS[language]
    if encoding == "cp1258":  # tones stand behind their letters
        text = "".join(_with_tone_behind(character) for character in text)
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return None


def _with_tone_behind(character: str) -> str:
    try:
        character.encode("cp1258")
    except UnicodeEncodeError:
        parts = unicodedata.normalize("NFD", character)
        tone = "".join(part for part in parts if part in "\u0300\u0301\u0303\u0309\u0323")
        return unicodedata.normalize("NFC", "".join(part for part in parts if part not in tone)) + tone
    return character


def cases() -> list[tuple[str, str]]:
    """(language, encoding) of all paragraphs that there are in these encodings."""
    return [
        (language, encoding)
        for language, encodings in ENCODINGS.items()
        for encoding in encodings
        if encoded(language, encoding) is not None
    ]
