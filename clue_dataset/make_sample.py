"""Writes the bundled sample: small data sets of our own in the formats of CLUE's eleven tasks.

Templates and word lists, drawn with a fixed seed. The words give the label away, so that a small
model, even one of random frozen weights, can learn each task in a short run; a score on the sample
says nothing about Chinese.
"""
import itertools
import json
import os
import random

HERE = os.path.dirname(os.path.abspath(__file__))
THINGS = ['会员卡', '话费', '订单', '快递', '发票', '密码', '银行卡', '优惠券', '红包', '账单', '积分', '流量', '门票', '包裹', '押金', '月票', '水费', '电费', '保单', '学费']
PEOPLE = ['小明', '小红', '老王', '张老师', '李医生', '赵大爷', '陈经理', '刘师傅', '孙阿姨', '周同学', '吴律师', '郑教练']
PLACES = ['公园', '车站', '图书馆', '医院', '超市', '学校', '饭店', '河边', '广场', '电影院']
DEEDS = ['看书', '跑步', '唱歌', '下棋', '买菜', '画画', '写信', '散步', '打球', '拍照', '钓鱼', '跳舞']


def fill(state, template, **words):
    """The template with a word drawn for every name in braces."""
    return template.format(**{name: state.choice(list(values)) for name, values in words.items()})


def draw(state, make, count, taken):
    """`count` records, none with a key that is taken: make(state) gives (key, record)."""
    records = []
    while len(records) < count:
        key, record = make(state)
        if key not in taken:
            taken.add(key)
            records.append(record)
    return records


def without(record, *names):
    return {name: value for name, value in record.items() if name not in names}


def write(task, name, text):
    folder = os.path.join(HERE, 'sample', task)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), 'w', encoding='utf-8', newline='\n') as writer:
        writer.write(text)


def write_lines(task, name, records):
    write(task, name, ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records))


def write_json(task, name, value):
    write(task, name, json.dumps(value, ensure_ascii=False, indent=1) + '\n')


def write_splits(task, make, sizes, hidden, train='train.json', tests=('test.json',)):
    """train, dev and test files of one record a line; `hidden` fields are not in the tests."""
    state, taken = random.Random(task), set()
    write_lines(task, train, draw(state, make, sizes[0], taken))
    write_lines(task, 'dev.json', draw(state, make, sizes[1], taken))
    for name in tests:
        records = draw(state, make, sizes[2], taken)
        write_lines(task, name, [dict(id=i, **without(r, *hidden)) for i, r in enumerate(records)])


# ------------------------------------------------------------------------------------ sentence pairs

def afqmc(state):
    asked = ['怎么取消{t}', '{t}在哪里查询', '{t}什么时候到账', '为什么{t}不能用', '{t}可以退吗', '如何开通{t}',
             '{t}丢了怎么办', '{t}能转给别人吗']
    again = ['请问一下{q}', '也就是说{q}', '我想知道{q}呢', '同样的问题，{q}']
    other = ['另外{q}', '换个问题，{q}', '那么别的{q}', '不说这个，{q}']
    label = state.choice('01')
    thing, (first, second) = state.choice(THINGS), state.sample(asked, 2)
    first = first.format(t=thing)
    if label == '1':
        second = state.choice(again).format(q=first)
    else:
        second = state.choice(other).format(q=second.format(t=state.choice(THINGS)))
    return (first, second), {'sentence1': first, 'sentence2': second, 'label': label}


def nli(state):
    person, place, deed = state.choice(PEOPLE), state.choice(PLACES), state.choice(DEEDS)
    first = state.choice(['{p}在{w}{d}。', '今天早上{p}到{w}{d}。', '{p}和朋友在{w}{d}。']).format(
        p=person, w=place, d=deed)
    label, second = state.choice([
        ('entailment', '有人在{w}{d}。'), ('entailment', '{p}确实{d}了。'), ('entailment', '至少有人到过{w}。'),
        ('neutral', '{p}可能很喜欢{d}。'), ('neutral', '{p}打算明天再来{w}。'), ('neutral', '也许{p}的家离{w}很近。'),
        ('contradiction', '{p}没有{d}。'), ('contradiction', '{p}从来不去{w}。'),
        ('contradiction', '没有人在{w}{d}。')])
    second = second.format(p=person, w=place, d=deed)
    return (first, second), {'sentence1': first, 'sentence2': second, 'label': label}


def ocnli(state):
    key, record = nli(state)
    return key, dict(record, level='easy', genre='sample')


FIELDS = [
    ('医学', '肺炎 血压 疫苗 骨折 糖尿病 护理 免疫 肿瘤'), ('农业', '水稻 土壤 灌溉 小麦 施肥 病虫害 产量 品种'),
    ('计算机', '神经网络 数据库 加密 编译器 图像识别 云计算 调度 缓存'), ('建筑', '混凝土 桥梁 抗震 隧道 钢结构 地基 保温 消防')]
GENERAL = ['方法', '结果', '分析', '研究', '问题', '结论', '过程', '情况', '内容', '意义']


def csl(state):
    field, words = state.choice(FIELDS)
    words = state.sample(words.split(), 4)
    abstract = state.choice([
        '本文研究了{0}与{1}的关系，并在{f}领域讨论了{2}对{3}的影响。', '针对{f}中的{0}，提出一种处理{1}的办法，说明{2}和{3}的作用。',
        '通过对{0}和{1}的调查，说明{2}在{f}里的重要性，并讨论{3}。']).format(*words, f=field)
    label = state.choice('01')
    keywords = words[:3] if label == '1' else state.sample(GENERAL, 2) + words[:1]
    return (abstract, tuple(keywords)), {'abst': abstract, 'keyword': keywords, 'label': label}


# ------------------------------------------------------------------------------------------- one text

SECTIONS = [
    ('103', 'news_sports', '球队 冠军 比赛 教练 进球 决赛 联赛 球员', '{0}夺得{1}，{2}赛后感谢{3}'),
    ('104', 'news_finance', '股票 基金 银行 利率 投资 债券 市值 分红', '{0}上涨，{1}和{2}怎么看{3}'),
    ('106', 'news_house', '房价 楼盘 购房 租房 小区 首付 户型 物业', '{0}有变化，{1}的{2}与{3}要注意'),
    ('107', 'news_car', '轿车 发动机 油耗 试驾 新车 轮胎 变速箱 车展', '{0}亮相，{1}和{2}让{3}受关注'),
    ('109', 'news_tech', '手机 芯片 软件 机器人 屏幕 系统 算法 电池', '新{0}发布，{1}与{2}升级，{3}更强')]


def tnews(state):
    label, name, words, template = state.choice(SECTIONS)
    words = state.sample(words.split(), 4)
    return tuple(words), {'label': label, 'label_desc': name, 'sentence': template.format(*words),
                          'keywords': ''}


APPS = [
    ('0', '打车', '叫车 司机 行程 接送 拼车 目的地'), ('2', '免费WIFI', '热点 无线网 密码 信号 连接 上网'),
    ('5', '快递物流', '寄件 包裹 运单 网点 签收 物流'), ('6', '婚庆', '婚礼 新娘 请柬 婚纱 摄影 喜糖'),
    ('7', '家政', '保洁 保姆 月嫂 钟点工 擦窗 搬家')]


def iflytek(state):
    label, name, words = state.choice(APPS)
    words = state.sample(words.split(), 5)
    text = state.choice([
        '这是一款方便的应用，提供{0}、{1}和{2}等功能，用户可以随时查看{3}，也能预约{4}。', '打开应用就能找到{0}，支持{1}与{2}，还有{3}提醒，{4}更省心。'])
    return tuple(words), {'label': label, 'label_des': name, 'sentence': text.format(*words)}


def wsc(state):
    """What is said of the pronoun tells whom it means."""
    giver, taker = state.sample(PEOPLE, 2)
    verb = state.choice(['把书借给', '把伞送给', '把钱借给', '把票让给', '把车借给'])
    of_giver = state.random() < 0.5
    said = state.choice(['真大方', '很热心', '非常慷慨', '乐于助人'] if of_giver
                        else ['十分感激', '连声道谢', '非常感动', '收下了'])
    text = '%s%s%s%s，因为他%s。' % (state.choice(['', '昨天', '上周', '开会时']), giver, verb, taker, said)
    target = {'span1_index': text.index(giver), 'span1_text': giver,
              'span2_index': text.index('他'), 'span2_text': '他'}
    return text, {'target': target, 'idx': 0, 'text': text, 'label': 'true' if of_giver else 'false'}


# ------------------------------------------------------------------------------------ multiple choice

def c3_dialogue(state, number, labelled):
    person, place, deed = state.choice(PEOPLE), state.choice(PLACES), state.choice(DEEDS)
    turns = ['男：%s去哪儿了？' % person, '女：在%s%s呢。' % (place, deed)]
    vague = ['不知道', '没有说', '看不出来', '都不对', '说不清楚', '不一定']
    questions = []
    for question, answer in [('%s在哪里？' % person, '在' + place), ('%s在做什么？' % person, '正在' + deed)]:
        choices = [answer] + state.sample(vague, state.choice([2, 3, 3]))
        state.shuffle(choices)
        questions.append({'question': question, 'choice': choices})
        if labelled:
            questions[-1]['answer'] = answer
        else:
            questions[-1]['id'] = 10 * number + len(questions) - 1
    return [turns, questions, 's-%d' % number]


def c3():
    numbers = itertools.count(1)
    for name, count in [('m-train', 25), ('d-train', 25), ('m-dev', 10), ('d-dev', 10), ('test1.0', 15),
                        ('test1.1', 15)]:
        state = random.Random(name)
        write_json('c3', name + '.json', [c3_dialogue(state, next(numbers), 'test' not in name)
                                          for _ in range(count)])


IDIOMS = [
    ('守株待兔', '他天天在树下{}，什么也没有等到'), ('画蛇添足', '这幅画已经很好，再加一笔就是{}了'),
    ('亡羊补牢', '损失之后马上改正，{}还不算晚'), ('井底之蛙', '不出门看世界的人，难免成了{}'),
    ('掩耳盗铃', '捂住耳朵骗自己，真是{}'), ('对牛弹琴', '跟不懂音乐的人讲琴，等于{}'),
    ('一举两得', '走路上班既省钱又锻炼，可以说是{}'), ('半途而废', '学习贵在坚持，不能{}'),
    ('雪中送炭', '在最困难的时候得到帮助，就像{}'), ('锦上添花', '演出已经成功，灯光更是{}'),
    ('胸有成竹', '准备充分的她上台时{}'), ('自相矛盾', '他前后说的话{}，没有人相信')]
OTHERS = ['风平浪静', '万里无云', '四面八方', '五颜六色', '七上八下', '十全十美', '百花齐放', '千山万水', '春暖花开', '秋高气爽', '山清水秀', '鸟语花香', '车水马龙', '人山人海', '灯火通明', '张灯结彩']
BEFORE = ['老师说，', '大家都知道，', '书里写道，', '邻居常说，', '爷爷告诉我，', '有人感叹，', '朋友笑着说，', '后来我明白，']


def chid_line(state, tags):
    """(record, answers): one to three texts, of one or two blanks each, an idiom at most once."""
    texts, answers, shapes = [], {}, state.choice([[1], [1], [2], [1, 1], [2, 1]])
    idioms = state.sample(IDIOMS, sum(shapes))
    candidates = [idiom for idiom, _ in idioms]
    candidates += state.sample(OTHERS, 10 - len(candidates))
    state.shuffle(candidates)
    for shape in shapes:
        text = ''
        for idiom, sentence in [idioms.pop() for _ in range(shape)]:
            tag = '#idiom%06d#' % next(tags)
            answers[tag] = candidates.index(idiom)
            text += state.choice(BEFORE) + sentence.format(tag) + '。'
        texts.append(text)
    return {'content': texts, 'candidates': candidates}, answers


def chid():
    for begin, (name, count, labelled) in enumerate([
            ('train', 120, True), ('dev', 40, True), ('test1.0', 30, False), ('test1.1', 30, False)]):
        state, tags, answers, records = random.Random(name), itertools.count(100000 * begin), {}, []
        for _ in range(count):
            record, found = chid_line(state, tags)
            records.append(record)
            answers.update(found)
        write_lines('chid', name + '.json', records)
        if labelled:
            write_json('chid', name + '_answer.json', answers)


# --------------------------------------------------------------------------------------------- spans

NAMES = {
    'address': '云山县 北河镇 海东市 南湖区', 'book': '《山中来信》 《夜航》 《数学之门》 《种树的人》',
    'company': '远航科技 绿叶食品公司 ABC电子 华星集团', 'game': '方块大冒险 星际赛车2 迷宫英雄 FIFA 08',
    'government': '市环保局 县教育局 国家档案馆 省水利厅', 'movie': '《雨夜追踪》 《蓝色列车》 《回家路上》 《最后一课》',
    'name': '林大海 王小燕 马文静 约翰·史密斯', 'organization': '登山协会 青年合唱团 NBA联盟 读书会',
    'position': '总经理 记者 班主任 CEO', 'scene': '白云塔 青龙瀑布 古城墙 月亮湾'}
REPORTS = ['{name}是{company}的{position}，昨天到{address}出差。', '{position}{name}在{scene}拍照，随后去了{government}。',
           '{organization}的成员都喜欢玩{game}，也看过{movie}。', '我在{address}买了{book}，作者是{name}。',
           '{company}请{organization}到{scene}开会。', '{government}的{position}推荐了{book}和{movie}。',
           '{name}说{game}是{company}做的。']


def cluener(state):
    text, label = '', {}
    template = state.choice(REPORTS)
    for part in template.replace('{', '|{').replace('}', '}|').split('|'):
        if part.startswith('{'):
            kind = part[1:-1]
            name = state.choice(NAMES[kind].replace('FIFA 08', 'FIFA_08').split()).replace('_', ' ')
            label.setdefault(kind, {}).setdefault(name, []).append(
                [len(text), len(text) + len(name) - 1])
            part = name
        text += part
    return text, {'text': text, 'label': label}


def cmrc2018():
    """The answer stands between brackets, and nothing else does."""
    kinds = [('桥', '这座桥叫什么？', '人们称它为'), ('塔', '这座塔的名字是什么？', '它的名字是'), ('河', '这条河名叫什么？', '当地人叫它'),
             ('山', '这座山叫什么名字？', '书上写作')]
    names = ['青石', '望月', '长风', '白鹭', '金沙', '听雨', '红枫', '云起', '石门', '古柳', '双龙', '春水']
    for _number, (split, count) in enumerate([('train', 60), ('dev', 20), ('trial', 10), ('test', 20)]):
        state, data = random.Random('cmrc2018' + split), []
        for i in range(count):
            kind, question, called = state.choice(kinds)
            answer = state.choice(names) + kind
            context = '%s附近有一%s%s。%s「%s」，建于%d年，每到%s天，%s常来这里%s。' % (
                state.choice(PLACES), '条' if kind == '河' else '座', kind, called, answer,
                state.randint(1100, 1990), state.choice('春夏秋冬'), state.choice(PEOPLE),
                state.choice(DEEDS))
            context = state.choice(['', '这里风景很好，来的人不少。', '从城里坐车一个小时就到。']) + context
            key = '%s_%d' % (split.upper(), i)
            answers = [{'text': answer, 'answer_start': context.index(answer)}]
            if split == 'test':
                answers = [{'text': 'FAKE_ANSWER_1', 'answer_start': -1}]
            elif split == 'dev':
                answers = answers * 3
            data.append({'id': key, 'title': kind, 'paragraphs': [{
                'id': key, 'context': context,
                'qas': [{'id': key + '_QUERY_0', 'question': question, 'answers': answers}]}]})
        write_json('cmrc2018', split + '.json', {'version': 'sample', 'data': data})


def main():
    write_splits('afqmc', afqmc, (200, 60, 60), ['label'])
    write_splits('cmnli', nli, (200, 60, 60), ['label'])
    write_splits('ocnli', ocnli, (200, 60, 60), ['label'], train='train.3k.json')
    write_splits('csl', csl, (200, 60, 60), ['label'])
    write_splits('tnews', tnews, (150, 60, 40), ['label', 'label_desc'],
                 tests=('test.json', 'test1.0.json'))
    write_splits('iflytek', iflytek, (150, 60, 40), ['label', 'label_des'])
    write_splits('wsc', wsc, (200, 60, 40), ['label', 'idx'], tests=('test.json', 'test1.0.json'))
    write_splits('cluener', cluener, (200, 60, 40), ['label'])
    c3()
    chid()
    cmrc2018()


if __name__ == '__main__':
    main()
